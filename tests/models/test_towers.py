import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from models.families.llava.model import LlavaModel
from models.layers.attention import attend_with_mask, causal_mask, dense_attention
from models.layers.layer_scan import stack_layers
from models.layers.linear import Maker
from models.model import Model
from models.prompts.arrays import inputs_from_arrays
from tests.support.tiny_llava import CONFIG, IMAGE, VISUAL_TOKENS, batch, prompt, tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def inputs():
    return batch(prompt(2, "image", 3), prompt(6, seed=1), side="left")


def random_model(config, **dtypes):
    """Like `tiny_model`, for any dtypes: drawing in JAX would compile for seconds."""
    module = nnx.eval_shape(lambda: LlavaModel(config, Maker.create(nnx.Rngs(0), **dtypes)))
    model = Model.from_module(module)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape) * 0.2, p.dtype), model.params
    )
    return dataclasses.replace(model, params=params)


def embeddings():
    shape = (2, 5)
    x = jax.random.normal(jax.random.key(0), (*shape, CONFIG.text.hidden_size))
    return x, jnp.broadcast_to(jnp.arange(shape[1]), shape)


def attend_causally(mask):
    def attend(layer, query, key, value, carry):
        output = dense_attention(query, key, value, mask, logits_scale=0.25)
        return output, carry + layer, {"key": key, "layer": layer}

    return attend


def test_dense_attention_is_softmax_attention_of_grouped_heads():
    query, key, value = (
        jax.random.normal(jax.random.key(i), (2, 3, heads, 8)) for i, heads in enumerate((4, 2, 2))
    )
    mask = causal_mask(jnp.array([[True, True, True], [False, True, True]]))
    got = jax.jit(partial(dense_attention, logits_scale=0.3))(query, key, value, mask)
    key, value = (np.repeat(np.asarray(x), 2, axis=2) for x in (key, value))
    scores = np.einsum("btnh,bsnh->bnts", query, key) * 0.3
    scores = np.where(mask[:, None], scores, -1e30)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(got, np.einsum("bnts,bsnh->btnh", weights, value), atol=1e-5)
    assert jnp.isfinite(got).all()  # the first query of the second row sees nothing


def test_attend_gets_every_layer_and_its_outputs_are_stacked(model):
    text = CONFIG.text
    embedded, positions = embeddings()
    attend = attend_causally(causal_mask(jnp.ones(positions.shape, bool)))
    run = jax.jit(lambda model: model.module().text(embedded, positions, attend, jnp.int32(10)))
    x, carry, outputs = run(model)
    out = outputs["layers"]
    assert x.shape == embedded.shape
    assert int(carry) == 10 + 0 + 1 + 2
    assert out["key"].shape == (
        text.num_hidden_layers,
        *positions.shape,
        text.num_key_value_heads,
        text.head_dim,
    )
    np.testing.assert_array_equal(out["layer"], [0, 1, 2])


def test_a_stack_is_its_blocks_one_after_another(model):
    tower = model.module().vision
    x = jax.random.normal(jax.random.key(0), (1, 3, 16, 16))
    config = dataclasses.replace(CONFIG.vision, feature_layers=(2, 0, 1))
    stacked = random_model(dataclasses.replace(CONFIG, vision=config)).module().vision
    hidden = stacked.pre_layrnorm(stacked.embeddings(x, None))
    graphdef, params = nnx.split(stacked.encoder.layers)
    states = [hidden]
    attend = attend_with_mask(lambda layer: None, logits_scale=config.encoder.logits_scale)
    for layer in range(2):
        block = nnx.merge(graphdef, jax.tree.map(lambda p: p[layer], params))  # noqa: B023
        states.append(block(states[-1], None, layer, attend, None)[0])
    expected = jnp.concatenate([states[2], states[0], states[1]], axis=-1)[:, 1:]
    np.testing.assert_allclose(jax.jit(stacked)(x), expected, atol=1e-5)
    # A tower whose second last layer is asked for is made without its last layer.
    assert tower.encoder.layers.self_attn.q_proj.kernel.shape[0] == 1


def test_compiled_size_does_not_grow_with_depth(inputs):
    def equations(depth):
        config = dataclasses.replace(
            CONFIG, text=dataclasses.replace(CONFIG.text, num_hidden_layers=depth)
        )
        model = random_model(config)
        return str(jax.make_jaxpr(models.forward)(model, inputs)).count("\n")

    assert equations(2) == equations(7)


def test_every_layer_gets_a_gradient(model):
    embedded, positions = embeddings()
    attend = attend_causally(causal_mask(jnp.ones(positions.shape, bool)))

    def loss(model):
        text = model.module().text
        x, _, _ = text(embedded, positions, attend, jnp.int32(0))
        return (text.logits(x) ** 2).mean()

    gradient = jax.jit(jax.grad(loss))(model)
    layers = jax.tree.leaves(gradient.params["text"]["layers"])
    assert all(jnp.abs(leaf).max(range(1, leaf.ndim)).min() > 0 for leaf in layers)


def test_features_take_the_places_of_image_tokens_in_order(model):
    inputs = batch(prompt("image", 2, "image"), prompt(3, "image", seed=1))
    features, embedded, words = jax.jit(
        lambda model: (
            model.module().image_features(inputs.pixel_values),
            model.module().embed_inputs(inputs).hidden,
            model.module().text.embed(inputs.input_ids),
        )
    )(model)
    np.testing.assert_allclose(
        embedded[inputs.visual_mask], features.reshape(-1, CONFIG.text.hidden_size), atol=1e-6
    )
    text = ~np.asarray(inputs.visual_mask)
    np.testing.assert_array_equal(embedded[text], words[text])


def test_padding_changes_no_logits(model):
    rows = prompt(2, "image", 3), prompt(6, seed=1)
    for row in rows:
        alone = models.forward(model, batch(row))[0]
        for side in ("left", "right"):
            inputs = batch(*rows, side=side)
            which = rows.index(row)
            padded = models.forward(model, inputs)[which][inputs.mask[which]]
            np.testing.assert_allclose(padded, alone, atol=1e-4)


def test_vmap_over_pictures_is_a_batch_of_them(model):
    single = batch(prompt(2, "image", 3))
    pictures = jax.random.normal(jax.random.key(0), (3, 1, 3, 16, 16))

    def logits(picture):
        return models.forward(model, dataclasses.replace(single, pixel_values=picture))

    mapped = jax.vmap(logits)(pictures)
    np.testing.assert_allclose(mapped[1], logits(pictures[1]), atol=1e-4)
    assert jnp.abs(mapped[1] - mapped[2]).max() > 0.1


def test_prompts_of_one_padded_length_share_a_compilation(model):
    from models.generation.forward import _forward

    models.forward(model, batch(prompt(4, "image", 3)))
    before = _forward._cache_size()
    for text in (1, 2, 5):
        models.forward(model, batch(prompt(text, "image", 7 - text)))
    models.forward(tiny_model(seed=1), batch(prompt(4, "image", 3)))
    assert _forward._cache_size() == before


@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_parameters_and_computation_have_their_own_dtypes(inputs, param_dtype):
    model = random_model(CONFIG, dtype=jnp.bfloat16, param_dtype=param_dtype)
    assert {p.dtype for p in jax.tree.leaves(model)} == {jnp.dtype(param_dtype)}
    embedded = jax.eval_shape(lambda model: model.module().embed_inputs(inputs).hidden, model)
    assert embedded.dtype == jnp.bfloat16
    logits = models.forward(model, inputs)
    assert logits.dtype == jnp.float32
    assert jnp.isfinite(logits).all()


def test_a_rim_that_fills_no_patch_is_left_out():
    config = dataclasses.replace(CONFIG.vision, image_size=18)
    tower = jax.jit(random_model(dataclasses.replace(CONFIG, vision=config)).module().vision)
    pixels = jax.random.normal(jax.random.key(0), (1, 3, 18, 18))
    assert tower(pixels).shape[1] == VISUAL_TOKENS
    np.testing.assert_array_equal(tower(pixels), tower(pixels.at[..., 16:, :].set(9.0)))


def test_an_image_token_beyond_the_embedding_is_replaced_like_any_other(model):
    beyond = dataclasses.replace(CONFIG, image_token_id=5000)
    inputs = batch(prompt(2, "image", 3))
    ids = np.where(inputs.visual_mask, 5000, inputs.input_ids)
    moved = inputs_from_arrays(beyond, ids, None, inputs.pixel_values)
    embed = jax.jit(lambda inputs: model.module().embed_inputs(inputs).hidden)
    np.testing.assert_array_equal(embed(moved), embed(inputs))
    assert IMAGE not in ids


def test_blocks_of_a_stack_start_apart():
    stack = stack_layers(lambda rngs: nnx.Linear(64, 64, rngs=rngs), 3, nnx.Rngs(0))
    kernel = stack.kernel[...]
    assert kernel.shape == (3, 64, 64)
    assert float(kernel.std()) == pytest.approx(64**-0.5, rel=0.1)
    assert float(jnp.abs(kernel[0] - kernel[1]).max()) > 0.1
