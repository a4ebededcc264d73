"""Quantize, dequantize, and both at once with a gradient."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Bool, Float, Shaped
from vkq_jax.codes.code_tables import SideTables
from vkq_jax.codes.dictionary_codes import DictionaryCodes
from vkq_jax.codes.dictionary_tensor import DictionaryTensor
from vkq_jax.codes.quantized import QuantizedTensor, Quantizer
from vkq_jax.messages import show
from vkq_jax.structure import check_structure
from vkq_jax.validation import as_array, check_hashable

__all__ = ["check_valid", "dequantize", "fake_quantize", "quantize"]


def quantize(
    x: Float[Array, "*lead V H"],
    config: Quantizer,
    *,
    valid: Bool[Array, "*#lead #V"] | None = None,
    tables: SideTables | None = None,
) -> QuantizedTensor:
    """Codes a tensor of V positions with H channels, independently for each leading index.

    Pure; works under `jax.vmap` and under `jax.jit`, where `config` is a static argument.

    Args:
        x: any floating dtype; the arithmetic is float32.
        config: a quantizer, for instance `presets["vkq-1bit"].key`.
        valid: which positions are tokens; the rest is padding, whose values have no influence on
            anything and which decodes to unspecified finite values. Broadcasts to x.shape[:-1].
            None: all are valid.
        tables: offline tables of dictionary codes that need them, [K, ...] for x [*lead, K, V, H].
            Other codes take none.

    Raises:
        ValueError: config is no `Quantizer`, not hashable, or makes no codes; tables are missing,
            do not fit, are those of other codes or no `SideTables`; x is not floating, has less
            than two axes or no channels; valid is not boolean or does not broadcast to
            x.shape[:-1].
    """
    if not isinstance(config, Quantizer):
        raise ValueError(
            "config must be the settings of one code family, such as LevelCodes(bits=1) or "
            f'presets["vkq-1bit"].key (or .value), got {show(config)}'
        )
    check_hashable("config", config)
    x = as_array("x", x)
    if x.ndim < 2 or not x.shape[-1] or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x must be floating, of shape [..., V, H] with at least one channel; got {x.dtype} of "
            f"shape {x.shape}"
        )
    if _check_tables(tables) is not None and not isinstance(config, DictionaryCodes):
        raise ValueError(_unread_tables(config))
    return _quantize(x, check_valid(valid, x.shape[:-1]), config, tables)


# Compiled, also when the caller is not: a few dozen operations on the whole cache become one.
@functools.partial(jax.jit, static_argnums=2)
def _quantize(
    x: Float[Array, "*lead V H"],
    valid: Bool[Array, "*lead V"],
    config: Quantizer,
    tables: SideTables | None,
) -> QuantizedTensor:
    if isinstance(config, DictionaryCodes):
        return config.quantize(x, valid, tables)
    coded = config.quantize(x, valid)
    if not isinstance(coded, QuantizedTensor):
        method = f"{type(config).__name__}.quantize"
        raise ValueError(f"{method} must return codes, such as AffineTensor, got {show(coded)}")
    return coded


def dequantize(q: QuantizedTensor, tables: SideTables | None = None) -> Float[Array, "*lead V H"]:
    """The values that the codes stand for, float32.

    Args:
        q: codes of `quantize`.
        tables: the same that were given to `quantize`; None where none were.

    Raises:
        ValueError: q is no `QuantizedTensor`; tables are missing, do not fit, or the codes read
            none.
    """
    if not isinstance(q, QuantizedTensor):
        raise ValueError(f"q must be codes, from quantize(x, config), got {show(q)}")
    check_structure("q", q)
    return _dequantize(q, _check_tables(tables))


@jax.jit
def _dequantize(q: QuantizedTensor, tables: SideTables | None) -> Float[Array, "*lead V H"]:
    if isinstance(q := q.plain(), DictionaryTensor):
        return q.dequantize(tables)
    if tables is not None:
        raise ValueError(_unread_tables(q))
    return q.dequantize()


def fake_quantize(
    x: Float[Array, "*lead V H"],
    config: Quantizer,
    *,
    valid: Bool[Array, "*#lead #V"] | None = None,
    tables: SideTables | None = None,
    gradient: Literal["straight_through", "zero"] = "straight_through",
) -> Float[Array, "*lead V H"]:
    """The values that coding and decoding make of `x`, in the dtype of `x`.

    Args:
        x, config, valid, tables: as for `quantize`.
        gradient: "straight_through" differentiates as the identity at valid positions (at padded
            ones, on whose values nothing depends, the gradient is 0); "zero" is the gradient of
            the step function that coding is.

    Raises:
        ValueError: as for `quantize`, or gradient is neither of the two.
    """
    if gradient not in ("straight_through", "zero"):
        raise ValueError(f'gradient must be "straight_through" or "zero", got {show(gradient)}')
    x = as_array("x", x)
    coded = quantize(jax.lax.stop_gradient(x), config, valid=valid, tables=tables)
    decoded = dequantize(coded, tables).astype(x.dtype)
    if gradient == "zero":
        return decoded
    return _straight_through(x, decoded, check_valid(valid, x.shape[:-1]))


# Not the usual x + stop_gradient(decoded - x): that rounds twice, and is NaN where padding is.
@jax.custom_jvp
def _straight_through(x: Array, decoded: Array, valid: Array) -> Array:
    del x, valid
    return decoded


@_straight_through.defjvp
def _straight_through_jvp(primals, tangents):
    _, decoded, valid = primals
    tangent, *_ = tangents
    return decoded, jnp.where(valid[..., None], tangent, jnp.zeros_like(tangent))


def _unread_tables(codes: Quantizer | QuantizedTensor) -> str:
    return f"tables: expected None, only DictionaryCodes read them; got some for {show(codes)}"


def _check_tables(tables: SideTables | None) -> SideTables | None:
    if tables is not None and not isinstance(tables, SideTables):
        raise ValueError(f"tables must be SideTables, one side of CodeTables, got {show(tables)}")
    return tables


def check_valid(valid: Shaped[Array, "..."] | None, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """The valid ones of positions of this shape; raises ValueError unless it is booleans for it."""
    if valid is None:
        return jnp.ones(shape, bool)
    valid = as_array("valid", valid)
    try:
        if valid.dtype == bool:
            return jnp.broadcast_to(valid, shape)
    except ValueError:
        pass
    raise ValueError(
        f"valid must be boolean and broadcast to x.shape[:-1] = {shape}; "
        f"got {valid.dtype} of shape {valid.shape}"
    )
