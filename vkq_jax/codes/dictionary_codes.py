"""Dictionary codes: classes of tokens, each a signed sum of dictionary columns around a centre."""

from __future__ import annotations

import dataclasses
from typing import Literal

from vkq_jax.array_types import Array, Bool, Float
from vkq_jax.bits import packing
from vkq_jax.codes import groups
from vkq_jax.codes.code_tables import SideTables
from vkq_jax.codes.dictionary_encoder import encode
from vkq_jax.codes.dictionary_tensor import DictionaryTensor
from vkq_jax.codes.quantized import Quantizer
from vkq_jax.codes.token_classes import TokenClass, check_classes
from vkq_jax.validation import check_fields

__all__ = ["DictionaryCodes"]


@dataclasses.dataclass(frozen=True)
class DictionaryCodes(Quantizer):
    """Settings of dictionary codes, see `DictionaryTensor`.

    Tokens are sorted by the energy of what their centre leaves, and get precision by class: tokens
    differ in how much there is to code, and their order says where the bits are. The unbiased scale
    of a token, a = |u|^2 / <u, D s>, makes <x_hat - centre, x - centre> exact (the estimator of
    RaBitQ, arXiv 2405.12497): a key shrunk by a code of least squared error would lower the score
    of just the tokens that matter.

    Attributes:
        classes: shares of the tokens and their bits per channel, from the greatest energy on. With
            a fraction of a bit, the first rotated channels have one bit more than the others;
            learned dictionaries round the bits of a token up to whole words of 32.
        order: what sorts tokens: their "energy", or "attention", their energy times the attention
            that a prompt's last queries of text pay to them (see
            `vkq_jax.attention.last_queries`). Where none follow, it is the energy.
        centres: centroids that each image brings of its own: 1 (the mean) to 256, or 0: none.
        codebook: centroids of the model's codebook, added to the mean if there is one; needs
            tables. 0: none.
        learned: whether the classes' dictionaries come from tables; otherwise they are Hadamard
            planes.
        basis: channels of learned dictionaries: "principal" ones, with more bits for the strong
            (see `vkq_jax.codes.fitting`), or mixed by a Hadamard matrix from those of the
            "queries", all with the same bits (OSCAR, arXiv 2605.17757).
        metric: whether tokens are compared by |A u| with the A of the tables; otherwise by |u|.
        scale: a of each token: "unbiased" as above; "norm", the root mean square of A u, with steps
            of least squared error for N(0, 1), or for dictionaries that are unbiased themselves;
            "between", the geometric mean of both (gamma = 1/2 of `SignCodes`); None: 1, the learned
            dictionary has fixed steps.
        smoothing: alpha in [0, 1]: channel i is coded in units of rms_i^alpha, the root mean square
            of what the mean of the image's tokens leaves of it (alpha is that of SmoothQuant, arXiv
            2211.10438). Large channels then take more of the error. Without tables.
        table_dtype: dtype in which centres and units are stored: bfloat16, float16 or float32.

    Raises:
        ValueError: a setting is none of these, several centres go with a codebook, or smoothing
            with tables.
    """

    classes: tuple[TokenClass, ...] = (
        TokenClass(0.25, 2),
        TokenClass(0.5, 1),
        TokenClass(0.25, 0),
    )
    order: Literal["energy", "attention"] = "energy"
    centres: int = 1
    codebook: int = 0
    learned: bool = False
    basis: Literal["principal", "queries"] = "principal"
    metric: bool = False
    scale: Literal["unbiased", "between", "norm"] | None = "unbiased"
    smoothing: float = 0.0
    table_dtype: str = "bfloat16"

    def __post_init__(self):
        """Checks the settings."""
        check_fields(self)
        check_classes(self.classes)
        groups.check_table_dtype(self.table_dtype)
        for name in ("centres", "codebook"):
            if not 0 <= getattr(self, name) <= 256:
                raise ValueError(f"{name} must be in [0, 256], got {getattr(self, name)}")
        if self.codebook == 1:
            raise ValueError("a codebook has 2 to 256 centroids or none (0), got 1")
        if self.centres > 1 and self.codebook:
            raise ValueError("centres of the image's own and a codebook exclude each other")
        if not self.learned and self.scale is None:
            raise ValueError('Hadamard planes need a scale, "unbiased" or "norm", got None')
        if not 0 <= self.smoothing <= 1:
            raise ValueError(f"smoothing must be in [0, 1], got {self.smoothing}")
        if self.smoothing and self.uses_tables:
            raise ValueError("smoothing is for codes without tables: these are of plain channels")
        if self.basis == "queries" and (self.metric or not self.learned):
            raise ValueError('basis="queries" is one of learned dictionaries without a metric')

    @property
    def uses_tables(self) -> bool:
        """Whether coding and decoding need the model's tables."""
        return self.learned or self.metric or self.codebook > 0

    @property
    def id_bits(self) -> int:
        """Bits of a centroid's number; 0: there is one centroid."""
        count = self.codebook or self.centres
        return 0 if count <= 1 else next(b for b in packing.SUPPORTED_BITS if 2**b >= count)

    def virtual_channels(self, number: int, head_dim: int) -> int:
        """n, the bits of a token of a class.

        A learned dictionary fills whole words of 32 bits.
        """
        virtual = round(self.classes[number].planes * head_dim)
        return packing.num_words(virtual, 1) * 32 if self.learned else virtual

    def quantize(
        self,
        x: Float[Array, "*lead V H"],
        valid: Bool[Array, "*lead V"],
        tables: SideTables | None = None,
    ) -> DictionaryTensor:
        """Codes `x` by itself; `encode_pair` codes keys and values of a bank together.

        Raises:
            ValueError: the settings need tables and there are none, or tables of another shape.
        """
        return encode(x, valid, self, tables)
