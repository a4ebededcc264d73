"""Functions on the devices of a mesh, `models.sharding.shards`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from models.sharding.shards import on_shards


@pytest.mark.mesh
def test_arrays_without_elements_stay_outside_of_the_devices_program():
    """The compiler for GPUs ends the process over them, see `tests.sharding.compile_for_gpus`."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
    split = PartitionSpec("data", "model")
    classes = jnp.arange(16.0).reshape(8, 2), jnp.zeros((8, 4, 0), jnp.uint32)

    def run(classes, none):
        full, empty = classes
        assert (full.shape, empty.shape, empty.dtype, none) == ((2, 1), (2, 2, 0), jnp.uint32, None)
        return (full + 1, {"empty": empty}), none

    sharded = on_shards(mesh, run, (split, split), (split, PartitionSpec()))
    (full, rest), none = sharded(classes, None)
    np.testing.assert_array_equal(full, classes[0] + 1)
    assert (rest["empty"].shape, rest["empty"].dtype, none) == ((8, 4, 0), jnp.uint32, None)
    (launch,) = [e for e in jax.make_jaxpr(sharded)(classes, None).eqns if "shard_map" in str(e)]
    assert [x.aval.shape for x in (*launch.invars, *launch.outvars)] == [(8, 2), (8, 2)]
