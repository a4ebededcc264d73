"""Centres that the kernels code tokens around: the image's own, or its mean and a codebook."""

import jax.numpy as jnp
import numpy as np

from pallas_kernels.isa.program import Run
from pallas_kernels.quantize.gathering import Gathered
from pallas_kernels.quantize.lloyd import assign_tokens
from pallas_kernels.quantize.nearest import nearest_centroids
from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.codes import groups
from vkq_jax.codes.code_tables import CodeTables
from vkq_jax.codes.dictionary_centring import units_of
from vkq_jax.codes.dictionary_codes import DictionaryCodes
from vkq_jax.codes.image_centres import STEPS, far_centres
from vkq_jax.pytree import frozen_pytree

__all__ = ["Around", "around_centres", "around_means"]


@frozen_pytree
class Around:
    """Centres and units of the tokens of B sequences and K heads.

    Attributes:
        centre: as stored, finite, of each head. unit: of each channel; None: 1.
        book: codebooks; None: `ids` choose among the centres. ids: centroid of each token.
        energy: |x / unit - centre - centroid|^2; 0 where there is no token.
    """

    centre: Float[Array, "2 heads M H"]
    unit: Float[Array, "2 heads H"] | None
    book: Float[Array, "2 K N H"] | None
    ids: Int32[Array, "2 heads V"]
    energy: Float[Array, "2 heads V"]


def around_centres(
    gathered: Gathered,
    valid: Bool[Array, "heads V"],
    codes: tuple[DictionaryCodes, DictionaryCodes],
    *,
    run: Run,
) -> Around:
    """The image's own centres, found by k-means, in units of channels."""
    both, settings = jnp.stack([valid, valid]), codes[0]
    smoothing = np.asarray([c.smoothing for c in codes], np.float32).reshape(2, 1, 1)
    unit = groups.as_stored(units_of(gathered.square, smoothing), settings.table_dtype)
    start = far_centres(gathered.x, both, gathered.mean, settings.centres, unit)
    centre, ids, energy = assign_tokens(gathered.x, both, start, unit, STEPS, run=run)
    return Around(centre, unit, None, ids, energy)


def around_means(
    gathered: Gathered,
    valid: Bool[Array, "B V"],
    codes: tuple[DictionaryCodes, DictionaryCodes],
    tables: CodeTables,
    *,
    run: Run,
) -> Around:
    """The mean of each head, if there is to be one, and centroids of the tables' codebook."""
    assert tables.key.codebook is not None
    assert tables.value.codebook is not None
    mean = gathered.mean[:, :, None][:, :, : codes[0].centres]
    centre = groups.as_stored(mean, codes[0].table_dtype)
    book = jnp.stack([tables.key.codebook, tables.value.codebook])
    sides = zip(codes, (tables.key, tables.value), strict=True)
    metrics = [side.metric if own.metric else None for own, side in sides]
    if metrics == [None, None]:
        ids, energy = nearest_centroids(gathered.x, valid, centre, book, run=run)
        return Around(centre, None, book, ids, energy)
    found = [
        nearest_centroids(
            gathered.x[side : side + 1],
            valid,
            centre[side : side + 1],
            book[side : side + 1],
            None if metric is None else metric[None],
            run=run,
        )
        for side, metric in enumerate(metrics)
    ]
    ids, energy = (jnp.concatenate(parts) for parts in zip(*found, strict=True))
    return Around(centre, None, book, ids, energy)
