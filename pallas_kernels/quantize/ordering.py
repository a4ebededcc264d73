"""Tokens put into classes and slots, one launch."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pallas_kernels.isa.program import Program, Run, run_on_gpu
from pallas_kernels.quantize.order_kernel import WARPS, OrderKernel, OrderSpec
from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.codes.dictionary_encoder import ATTENTION_FLOOR
from vkq_jax.codes.token_classes import TokenClass, capacities, share_bounds

__all__ = ["order_tokens"]


def order_tokens(
    energy: Float[Array, "2 heads V"],
    valid: Bool[Array, "heads V"],
    classes: Sequence[TokenClass],
    attention: Float[Array, "heads V"] | None = None,
    *,
    run: Run = run_on_gpu,
) -> tuple[Int32[Array, "heads V"], Int32[Array, "heads S"], Int32[Array, "heads C"]]:
    """`assign_classes` of the energies of keys and values, each in units of its mean.

    Attention multiplies them as in `vkq_jax.codes.dictionary_encoder.sorting_energy`.

    Args:
        energy: 0 where there is no token. valid: which ones there are: none behind one that is not.
        classes: of tokens. attention: that each token gets, if tokens are sorted by it.
        run: runs the kernel; tests emulate it.

    Returns:
        The class of each token, as many as there are classes where there is none; the position in
        each slot, -1 where there is none, each class filled up to half a block of the layout; and
        the tokens of each class.
    """
    heads, positions = valid.shape
    spec = OrderSpec(
        heads,
        positions,
        capacities(classes, positions),
        tuple(share_bounds(classes)),
        floor=None if attention is None else ATTENTION_FLOOR,
    )
    program = Program(
        body=lambda ops: OrderKernel(ops, spec).run(),
        results={
            "number": jax.ShapeDtypeStruct((heads, positions), jnp.int32),
            "slot": jax.ShapeDtypeStruct((heads, sum(spec.padded)), jnp.int32),
            "count": jax.ShapeDtypeStruct((heads, len(classes)), jnp.int32),
        },
        grid=heads,
        warps=WARPS,
        shared_words=spec.shared_words,
    )
    operands = {
        "energy": energy.reshape(-1, positions),
        "length": valid.sum(-1, dtype=jnp.int32),
    }
    if attention is not None:
        operands["attention"] = attention
    number, slot, count = run(program, operands)
    return number, slot, count
