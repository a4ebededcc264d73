"""Stacks of equal blocks: made, run one after another, their parameters together or apart."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vkq_jax.array_types import Array
from vkq_jax.pytree import frozen_pytree, take_layer

__all__ = [
    "UnstackedParam",
    "restack_layers",
    "scan_kinds",
    "scan_layers",
    "stack_layers",
    "unstack_layers",
]


# Runs a block: (carry, (number of the layer, parameters)) -> (carry, output).
type _Body[C] = Callable[[C, tuple[Any, Any]], tuple[C, Any]]


class _Layer(NamedTuple):
    kind: int
    number: int  # among all layers
    place: int  # in the stack of its kind


def stack_layers[M: nnx.Module](
    create: Callable[[nnx.Rngs], M], num_layers: int, rngs: nnx.Rngs
) -> M:
    """One module that holds `num_layers` equal blocks: each parameter has a leading axis L."""
    return nnx.split_rngs(splits=num_layers)(nnx.vmap(create))(rngs)


@frozen_pytree
class UnstackedParam:
    """A parameter of stacked blocks whose layers lie in buffers of their own.

    A loop over a stack hands each layer a copy of its slice, because a matrix product wants its
    operand in one piece. In a decode step, which does little but read the weights, that triples
    what is read and written. Blocks with such parameters are run one by one instead of in a loop.
    """

    layers: tuple[Array, ...]


def unstack_layers(stack: Array) -> UnstackedParam:
    """A stacked parameter with each layer in a buffer of its own; frees the stack."""
    layers = tuple(jax.block_until_ready([stack[i] for i in range(stack.shape[0])]))
    stack.delete()
    return UnstackedParam(layers)


def restack_layers(params: Any) -> Any:
    """The stacked parameters again."""
    return jax.tree.map(
        lambda x: jnp.stack(x.layers) if _is_unstacked(x) else x, params, is_leaf=_is_unstacked
    )


def scan_layers[C](
    layers: nnx.Module,
    step: Callable[[Any, Any, C], tuple[C, Any]],
    carry: C,
    num_layers: int,
    *,
    unroll: bool = False,
) -> tuple[C, Any]:
    """Runs stacked blocks one after another, compiled once whatever their number.

    Blocks whose parameters are `UnstackedParam`s are compiled one by one.

    Args:
        layers: what `stack_layers` made.
        step: `(block, layer, carry) -> (carry, output)`; the layer's number is an int32 scalar,
            or a plain integer where blocks are compiled one by one.
        carry: what goes from block to block.
        num_layers: L.
        unroll: compile block by block: the backward pass need not stack the activations that it
            keeps, which is faster to run and slower to compile.

    Returns:
        The last carry, and the outputs stacked along a leading axis L.
    """
    kinds = (0,) * num_layers
    carry, (outputs,) = scan_kinds((layers,), kinds, (step,), carry, unroll=unroll)
    return carry, outputs


def scan_kinds[C](
    stacks: Sequence[nnx.Module],
    kinds: Sequence[int | None],
    steps: Sequence[Callable[[Any, Any, C], tuple[C, Any]]],
    carry: C,
    *,
    unroll: bool = False,
) -> tuple[C, tuple[Any, ...]]:
    """`scan_layers` of several kinds of layers, each compiled a few times whatever their number.

    A pattern of kinds that repeats is a loop over its repetitions, in which equal layers that
    follow each other are a loop.

    Args:
        stacks: of each kind, what `stack_layers` made.
        kinds: of each layer, the number of its stack, whose blocks are in the order of the layers;
            None for a layer that is left out, as are all of its kind.
        steps: of each kind. Outputs of one have the same structure, shapes and dtypes.
        carry, unroll: see `scan_layers`.

    Returns:
        The last carry, and the outputs of each kind, stacked along a leading axis in the order of
        its layers; None for a kind that was left out.
    """
    split = [nnx.split(stack) for stack in stacks]

    def body_of(kind: int) -> _Body[C]:
        def body(carry: C, item: tuple[Any, Any]) -> tuple[C, Any]:
            layer, params = item
            return steps[kind](nnx.merge(split[kind][0], params), layer, carry)

        return body

    bodies = [body_of(kind) for kind in range(len(stacks))]
    params = [params for _, params in split]
    layers = _in_stacks(kinds)
    apart = any(map(_is_unstacked, jax.tree.leaves(params, is_leaf=_is_unstacked)))
    if apart or unroll:
        return _one_by_one(bodies, params, layers, carry)
    if len({layer.kind for layer in layers}) == 1:
        # The stack as the loop's own input: its gradient is made layer by layer.
        numbers = jnp.asarray([layer.number for layer in layers], jnp.int32)
        kind = layers[0].kind
        carry, output = jax.lax.scan(bodies[kind], carry, (numbers, params[kind]))
        return carry, tuple(output if each == kind else None for each in range(len(stacks)))
    return _in_repetitions(bodies, params, layers, carry)


def _in_repetitions[C](
    bodies: Sequence[_Body[C]], params: Sequence[Any], layers: Sequence[_Layer], carry: C
) -> tuple[C, tuple[Any, ...]]:
    """A loop over the repetitions of each pattern, in which equal neighbours are a loop."""

    def run(carry: C, kind: int, numbers: Array, places: Array) -> tuple[C, Any]:
        """Layers of one kind, at these places of its stack."""

        def body(carry: C, item: tuple[Array, Array]) -> tuple[C, Any]:
            number, place = item
            return bodies[kind](carry, (number, take_layer(params[kind], place)))

        return jax.lax.scan(body, carry, (numbers, places))

    outputs: list[list[Any]] = [[] for _ in bodies]
    for first, period, repeats in _repetitions([layer.kind for layer in layers]):
        block = layers[first : first + period * repeats]
        # table[i, j] has the number of layer j of repetition i, and its place in the stack.
        table = jnp.asarray([(layer.number, layer.place) for layer in block], jnp.int32)
        runs = _runs([layer.kind for layer in block[:period]])

        def repetition(carry: C, own: Array, runs: Any = runs) -> tuple[C, dict[int, Any]]:
            found: dict[int, list[Any]] = {}
            for kind, part in runs:
                carry, output = run(carry, kind, own[part, 0], own[part, 1])
                found.setdefault(kind, []).append(output)
            return carry, {kind: _joined(each) for kind, each in found.items()}

        carry, found = jax.lax.scan(repetition, carry, table.reshape(repeats, period, 2))
        for kind, each in found.items():
            outputs[kind].append(jax.tree.map(_in_one_axis, each))
    return carry, tuple(_joined(each) if each else None for each in outputs)


def _one_by_one[C](
    bodies: Sequence[_Body[C]], params: Sequence[Any], layers: Sequence[_Layer], carry: C
) -> tuple[C, tuple[Any, ...]]:
    """Each layer compiled by itself."""
    outputs: list[Any] = [None] * len(bodies)
    counts = Counter(layer.kind for layer in layers)
    for kind, number, place in layers:
        block_params = jax.tree.map(
            lambda x, place=place: x.layers[place] if _is_unstacked(x) else x[place],
            params[kind],
            is_leaf=_is_unstacked,
        )
        carry, output = bodies[kind](carry, (number, block_params))
        if place == 0:  # written layer by layer: no second copy of all of them
            outputs[kind] = jax.tree.map(
                lambda x, count=counts[kind]: jnp.zeros((count, *x.shape), x.dtype), output
            )
        outputs[kind] = jax.tree.map(
            lambda stack, x, place=place: stack.at[place].set(x), outputs[kind], output
        )
    return carry, tuple(outputs)


def _in_stacks(kinds: Sequence[int | None]) -> list[_Layer]:
    """Each layer that is not left out."""
    counts: Counter[int] = Counter()
    layers = []
    for number, kind in enumerate(kinds):
        if kind is not None:
            layers.append(_Layer(kind, number, counts[kind]))
            counts[kind] += 1
    return layers


def _repetitions(kinds: Sequence[int]) -> list[tuple[int, int, int]]:
    """Layers cut into pieces: the first layer of each, the length of its pattern, repetitions."""
    pieces, first = [], 0
    while first < len(kinds):
        best = 1, 1
        for period in range(1, (len(kinds) - first) // 2 + 1):
            pattern, repeats = kinds[first : first + period], 1
            while kinds[first + repeats * period :][:period] == pattern:
                repeats += 1
            if repeats > 1 and period * repeats > best[0] * best[1]:
                best = period, repeats
        pieces.append((first, *best))
        first += best[0] * best[1]
    return pieces


def _runs(kinds: Sequence[int]) -> list[tuple[int, slice]]:
    """Equal kinds that follow each other, and where."""
    runs, first = [], 0
    for kind, equal in itertools.groupby(kinds):
        count = len(list(equal))
        runs.append((kind, slice(first, first + count)))
        first += count
    return runs


def _in_one_axis(x: Array) -> Array:
    """The first two axes as one."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _joined(outputs: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)


def _is_unstacked(x: Any) -> bool:
    return isinstance(x, UnstackedParam)
