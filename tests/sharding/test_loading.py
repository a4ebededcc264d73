"""Weights are read straight into their shards, and a mesh that does not fit is refused."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

import models
import vkq_jax
from models import model_fingerprint as fingerprints
from models.checkpoints.folder import Checkpoint
from models.families.mesh_fit import fit_mesh
from models.generation.prefill import new_cache
from models.layers.layer_scan import restack_layers
from models.sharding.mesh import check_states, make_mesh, over_heads
from tests.models.hf_files import config_json
from tests.sharding.cases import CONFIGS, assert_same, inputs_of


def shards(x: jax.Array) -> int:
    """In how many parts an array lies."""
    return math.prod(x.shape) // math.prod(x.sharding.shard_shape(x.shape))


def apart(path):
    """Where a mesh has a parameter of one device, whose projections of linear attention are one."""
    if "in_proj_qkv" not in path:
        return [path]
    at = path.index("in_proj_qkv")
    return [(*path[:at], f"in_proj_{name}", *path[at + 1 :]) for name in "qkv"]


@pytest.mark.parametrize(
    "name",
    [name if name == "experts" else pytest.param(name, marks=pytest.mark.mesh) for name in CONFIGS],
)
def test_parameters_are_those_of_the_files(cases, name):
    one, many = cases.model(name), cases.model(name, "data=2,model=4")
    found = dict(nnx.to_flat_state(many.params))
    for path, expected in nnx.to_flat_state(one.params):
        parts = [found.pop(own) for own in apart(path)]
        got = np.concatenate([x[...] for x in parts], -1) if len(parts) > 1 else parts[0][...]
        assert_equal_but_for_padding(got, expected[...])
    assert not found
    assert models.fingerprint(many) == models.fingerprint(one)
    block = many.params["text"]["layers"]
    kinds = {"other heads": 2}  # of its full layers, which share the mesh
    heads = kinds.get(name, one.config.text.num_key_value_heads)
    assert shards(block["self_attn"]["q_proj"]["kernel"][...]) == 4
    assert shards(block["self_attn"]["k_proj"]["kernel"][...]) == min(heads, 4)
    mlp = block["mlp"]
    inner = mlp["experts"]["up_proj"] if name == "experts" else mlp["down_proj"]["kernel"]
    assert shards(inner[...]) == 4
    assert shards(many.params["text"]["embed_tokens"]["weight"][...]) == 4


def assert_equal_but_for_padding(many: jax.Array, one: jax.Array) -> None:
    """Rows that the vocabulary gets on a mesh are zero."""
    added = len(many) - len(one) if one.ndim else 0
    np.testing.assert_array_equal(many[: len(one)] if added else many, one)
    assert not added or (len(many) % 4 == 0 and not np.asarray(many[len(one) :]).any())


def test_rows_added_to_a_vocabulary_stay_on_the_mesh(cases, tmp_path):
    """Files have the rows that there are, and an id outside of them gets the nearest, as ever."""
    name = "2 KV heads, odd vocabulary"
    one, many = cases.model(name), cases.model(name, "data=2,model=4")
    assert [len(x.params["text"]["lm_head"]["weight"][...]) for x in (one, many)] == [61, 256]
    assert models.forward(many, inputs_of(many)).shape[-1] == 61
    models.save_weights(many, tmp_path)
    expected, saved = Checkpoint(cases.folder / name), Checkpoint(tmp_path)
    assert saved.tensors.keys() == expected.tensors.keys()
    for key in expected.tensors:
        np.testing.assert_array_equal(saved.read(key), expected.read(key))
    ids = np.array([[60, 61, 63, 300, -1]])
    assert_same(many.module().text.embed(ids), one.module().text.embed(ids))


def held_by(device: jax.Device) -> int:
    """Bytes of all arrays on a device."""
    return sum(
        x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
        for x in jax.live_arrays()
        if device in x.sharding.device_set
    )


def test_each_part_is_read_once_and_nothing_else(cases, monkeypatch):
    """And a device never holds more than its part of the model and of one more tensor."""
    name = "8 KV heads"
    cases.model(name)
    read: list[tuple[str, int]] = []
    held: list[int] = []
    original = Checkpoint.read

    def recorded(self, key, *index):
        values = original(self, key, *index)
        read.append((key, values.size))
        held.append(max(map(held_by, jax.devices())))
        return values

    before = max(map(held_by, jax.devices()))
    monkeypatch.setattr(Checkpoint, "read", recorded)
    model = models.load(cases.folder / name, dtype=jnp.float32, mesh="data=2,model=4")
    key = "language_model.model.layers.0.self_attn.q_proj.weight"
    assert [size for found, size in read if found == key] == [32 * 128 // 4] * 4
    sizes = {found: size for found, size in read if "norm" in found or "vision" in found}
    assert len(sizes) == sum("norm" in found or "vision" in found for found, _ in read)
    own = [
        x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
        for x in jax.tree.leaves(model.params)
    ]
    assert max(held) - before <= sum(own) + max(own)


def test_layers_apart_stay_in_their_shards(cases):
    name = "4 KV heads"
    one = cases.model(name)
    apart = models.load(cases.folder / name, dtype=jnp.float32, mesh="model=4", layers_apart=True)
    kernel = apart.params["text"]["layers"]["mlp"]["up_proj"]["kernel"]
    assert [shards(layer) for layer in kernel.layers] == [4, 4]
    jax.tree.map(assert_equal_but_for_padding, restack_layers(apart.params), one.params)
    assert models.fingerprint(apart) == models.fingerprint(one)
    # As on accelerators, where the shards are summed.
    expected = fingerprints._sum_on_host(np.asarray(kernel.layers[0]), 7)
    assert int(fingerprints._sum_on_devices(kernel.layers[0], np.uint32(7))) == expected


@pytest.mark.parametrize(
    ("mesh", "text", "named"),
    [
        ("model=3", {}, "model=3 does not divide num_attention_heads=8"),
        ("model=8", {"intermediate_size": 20}, "model=8 does not divide intermediate_size=20"),
        ("model=8", {"num_attention_heads": 24, "num_key_value_heads": 6}, "num_key_value_heads=6"),
        ("data=4,model=4", {}, "data=4,model=4 needs 16 devices, there are 8"),
        ("data=2,tensor=4", {}, "axes data and model, such as data=2,model=4"),
        ("data=2,data=4", {}, "got 'data=2,data=4'"),
        ("data=0", {}, "got 'data=0'"),
        ("", {}, "got ''"),
        (8, {}, "got 8"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_error(tmp_path, mesh, text, named):
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 32, "head_dim": 4}
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_json(text=sizes | text)))
    with pytest.raises(ValueError, match=named) as error:
        fit_mesh(mesh, models.read_config(folder))
    assert str(error.value).startswith("mesh")
    assert len(str(error.value)) < 400


def test_heads_of_linear_attention_have_to_be_divided(cases):
    one = cases.model("linear attention")
    with pytest.raises(ValueError, match="model=8 does not divide linear_num_key_heads=4: use one"):
        fit_mesh("model=8", one.config)
    cache = new_cache(one, 2, quant=vkq_jax.presets["none"], cache_length=8)
    with pytest.raises(ValueError, match="model=8 does not divide the 4 heads of recurrent states"):
        check_states(over_heads("model=8", 4), cache)


def test_a_mesh_of_jax_is_taken_in_any_order_of_its_axes():
    devices = np.array(jax.devices()).reshape(4, 2)
    mesh = make_mesh(Mesh(devices, ("model", "data")))
    assert dict(mesh.shape) == {"data": 2, "model": 4}
    np.testing.assert_array_equal(mesh.devices, devices.T)
    with pytest.raises(ValueError, match=r"expected axes data and model, got \['x'\]"):
        make_mesh(jax.make_mesh((8,), ("x",)))


def test_a_batch_that_data_does_not_divide_is_one_error(cases):
    model = cases.model("4 KV heads", "data=4,model=2")
    inputs = inputs_of(cases.model("4 KV heads"), batch=6)
    with pytest.raises(ValueError, match="data=4 does not divide a batch of 6 prompts"):
        models.generate(model, inputs, max_new_tokens=1)
    with pytest.raises(ValueError, match="data=4 does not divide a batch of 6 prompts"):
        models.forward(model, inputs)
