"""Functions run by each device of a mesh on its own part of their arguments."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

__all__ = ["on_shards"]


def on_shards[**A, R](
    mesh: Mesh | None, function: Callable[A, R], in_specs: Any, out_specs: Any
) -> Callable[A, R]:
    """The function, run by each device on its own part of the arguments, see `jax.shard_map`.

    Arrays without elements, which classes of tokens at 0 bits have, stay outside of it: XLA makes
    constants of them on a GPU, on which its partitioner (Shardy, jax 0.11.2) then ends the process.
    """
    if mesh is None:
        return function
    # Traced once for both uses below: their arguments have the same shapes.
    whole = jax.jit(function, inline=True)

    def shard(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        return jax.shard_map(
            function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )

    def run(*arguments: Any) -> Any:
        of_shards = shard(whole, in_specs, out_specs)
        given = _Leaves(arguments, in_specs)
        if given.are_full:
            return of_shards(*arguments)
        results = _Leaves(jax.eval_shape(of_shards, *arguments), out_specs)

        def run_full(*arrays: jax.Array) -> tuple[jax.Array, ...]:
            return results.full(whole(*given.whole(arrays, mesh)))

        found = shard(run_full, given.specs, results.specs)(*given.full(arguments))
        return results.whole(found, None)

    return run  # type: ignore


class _Leaves:
    """Those leaves of a pytree that have elements, and what it takes to put the others back."""

    def __init__(self, tree: Any, specs: Any):
        """Takes the pytree, which may be abstract, and `PartitionSpec`s for it or for its parts."""
        self.leaves, self.structure = jax.tree.flatten(tree)
        self._all_specs = jax.tree.leaves(jax.tree.broadcast(specs, tree))
        self._has = [leaf.size > 0 for leaf in self.leaves]
        self.specs = tuple(itertools.compress(self._all_specs, self._has))
        self.are_full = all(self._has)

    def full(self, tree: Any) -> tuple[jax.Array, ...]:
        """The leaves with elements of a pytree like it."""
        return tuple(itertools.compress(jax.tree.leaves(tree), self._has))

    def whole(self, arrays: Sequence[jax.Array], mesh: Mesh | None) -> Any:
        """The pytree of these leaves with elements; on a mesh, the part of one of its devices."""
        rest = iter(arrays)

        def empty(leaf: Any, spec: PartitionSpec) -> jax.Array:
            own = leaf.shape
            if mesh is not None:
                own = NamedSharding(mesh, spec).shard_shape(own)
            return jnp.zeros(own, leaf.dtype)

        of_all = zip(self.leaves, self._all_specs, self._has, strict=True)
        return self.structure.unflatten(
            [next(rest) if has else empty(leaf, spec) for leaf, spec, has in of_all]
        )
