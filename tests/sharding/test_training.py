"""A training step whose batch several devices share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.loading import TINY
from models.sharding.mesh import make_mesh
from models.sharding.placing import place_shared
from vkq_apps.training.chunks import fill_chunk, new_chunk
from vkq_apps.training.encoding import RECIPE
from vkq_apps.training.feeding import InlineFeed, PooledFeed, to_device
from vkq_apps.training.judge import Judge
from vkq_apps.training.optimizer import Schedule
from vkq_apps.training.rendering import Renderers
from vkq_apps.training.step import take


class _Renderers(Renderers):
    """Chunks without processes."""

    def __init__(self):
        self.chunk = new_chunk(8)
        fill_chunk(self.chunk, "test", 0.2)

    def take(self, use, timeout):
        return use(self.chunk)

    def set_difficulty(self, difficulty):
        pass


@pytest.mark.mesh
def test_a_step_of_four_devices_is_that_of_one():
    schedule = Schedule(steps=4, peak=1e-2, warmup=1)
    results = []
    for mesh in (None, make_mesh("data=4")):
        model = models.load(TINY, dtype=jnp.float32, layers_apart=False)
        judge = Judge(model, 2, RECIPE.prefix, mesh=mesh)
        start = jax.tree.map(np.array, judge.trained)
        state = place_shared(mesh, judge.initial_state())
        step, feed = judge.make_step(schedule, "xla", unroll=False), InlineFeed(4, 0, mesh=mesh)
        state, _ = step(state, *feed.sources(0, 0.2))
        state, losses = step(state, *feed.sources(1, 0.2))
        assert all(x.is_fully_replicated for x in jax.tree.leaves(state))
        results.append((state, losses))
    (one, loss_of_one), (four, loss_of_four) = results
    np.testing.assert_allclose(loss_of_four["loss"], loss_of_one["loss"], rtol=1e-5)
    moved = 0.0
    leaves = map(jax.tree.leaves, (start, one.params, four.params))
    for before, a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4)
        moved = max(moved, float(abs(a - before).max()))
    assert moved > 1e-2


def test_each_device_draws_from_its_own_part_of_a_chunk():
    mesh, renderers = make_mesh("data=4"), _Renderers()
    feed = PooledFeed(renderers, chunks=2, mixed=2, batch=16, chunk_size=8, seed=0, mesh=mesh)
    chunks, places = feed.sources(0, 1.0)
    assert places.shape == (2, 4, 2)
    batch = take(chunks, places, mesh)
    assert batch.images.sharding.shard_shape(batch.images.shape)[0] == 4
    own = 2 * np.arange(4)[None, :, None] + np.asarray(places)  # a device has two examples
    expected = renderers.chunk.rows[own.transpose(1, 0, 2).ravel()]
    np.testing.assert_array_equal(batch.rows, expected)


@pytest.mark.parametrize("sizes", [{"batch": 12, "chunk_size": 8}, {"batch": 16, "chunk_size": 6}])
def test_sizes_that_devices_do_not_divide_are_one_clear_error(sizes):
    mesh = make_mesh("data=4")
    with pytest.raises(ValueError, match="must be a multiple of devices=4"):
        PooledFeed(_Renderers(), chunks=2, mixed=2, seed=0, mesh=mesh, **sizes)


def test_a_chunk_is_split_by_examples():
    chunk = to_device(_Renderers().chunk, make_mesh("data=4"))
    assert chunk.images.sharding.shard_shape(chunk.images.shape)[0] == 2
