"""Logits that are not finite: an error that names where they come from."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import vkq_jax
from models.generation.argument_checks import check_cache
from models.generation.finite_check import first_non_finite, refuse_non_finite
from models.generation.prefill import prefill
from tests.support.tiny_llava import CONFIG, batch, prompt, tiny_model

ROWS = (prompt(3, "image", 2), prompt(4, seed=2))
VISION = dataclasses.replace(CONFIG.vision, feature_layers=(2,))


@pytest.fixture(scope="module")
def model():
    return tiny_model(config=dataclasses.replace(CONFIG, vision=VISION))


def broken(model, wanted, index, value=jnp.nan):
    """The model with one value of one parameter replaced."""

    def change(path, leaf):
        name = jax.tree_util.keystr(path)
        return leaf.at[index].set(value) if wanted in name else leaf

    return dataclasses.replace(model, params=jax.tree_util.tree_map_with_path(change, model.params))


PLACES = [
    (
        "['vision']['embeddings']['patch_embedding']",
        (0, 0),
        "in the patch embeddings of the vision tower",
    ),
    (
        "['vision']['encoder']['layers']['self_attn']['out_proj']['bias']",
        (0, 1),
        "the output of vision layer 0 .*0 to 1",
    ),
    (
        "['vision']['encoder']['layers']['mlp']['fc2']['kernel']",
        (1, 1),
        "the output of vision layer 1 ",
    ),
    ("['projector']['linear_2']['bias']", 3, "the output of the projector"),
    ("['text']['embed_tokens']", ROWS[0][0], "in the token embeddings"),
    ("['text']['layers']['input_layernorm']", (0, 1), "the output of text layer 0 .*0 to 2"),
    ("['text']['layers']['mlp']['down_proj']['kernel']", (1, 1), "the output of text layer 1 "),
    ("['text']['layers']['self_attn']['k_proj']['kernel']", (2, 1), "the output of text layer 2 "),
    ("['text']['norm']", 1, "the output of the last norm and the head"),
    ("['text']['lm_head']", (1, 9), "the output of the last norm and the head"),
]


@pytest.mark.parametrize(("name", "index", "place"), PLACES)
def test_the_first_place_is_named(model, name, index, place):
    assert first_non_finite(model, batch(*ROWS)) is None
    for value in (jnp.nan, jnp.inf):
        found = first_non_finite(broken(model, name, index, value), batch(*ROWS))
        assert found is not None
        assert re.match(place, found), found


def test_padding_that_is_not_finite_spoils_all_and_is_named(model):
    inputs = batch(*ROWS)
    unused = next(token for token in range(3, 63) if token not in np.asarray(inputs.input_ids))
    ids = jnp.where(inputs.mask, inputs.input_ids, unused)
    padded = dataclasses.replace(inputs, input_ids=ids)
    model = broken(model, "['text']['embed_tokens']", unused)
    assert first_non_finite(model, padded) == "in the token embeddings"
    with pytest.raises(ValueError, match="in the token embeddings"):
        models.generate(model, padded, quant="none", max_new_tokens=3, stop_tokens=())


def test_generation_ends_in_an_error_and_says_so_under_jit(model):
    bad = broken(model, "['text']['layers']['mlp']['down_proj']['kernel']", (1, 1))
    options = {"quant": "signs-1bit", "max_new_tokens": 3, "stop_tokens": ()}
    message = "logits of sequence 0 are not finite: the first NaN or infinity is the output of text"
    with pytest.raises(ValueError, match=message) as error:
        models.generate(bad, batch(*ROWS), **options)
    assert len(str(error.value)) < 400
    with pytest.raises(ValueError, match=message):
        next(models.stream(bad, batch(*ROWS), **options))
    finite = jax.jit(lambda model: models.generate(model, batch(*ROWS), **options).finite)
    assert finite(bad).tolist() == [False, False]
    assert finite(model).tolist() == [True, True]
    # Only one sequence meets the token: the other one is whole.
    token = next(token for token in ROWS[1] if token not in ROWS[0])
    assert finite(broken(model, "['text']['embed_tokens']", token)).tolist() == [True, False]


def test_an_earlier_turn_and_the_cache_can_be_to_blame(model):
    inputs = batch(*ROWS)
    _, cache = prefill(model, inputs, quant=vkq_jax.resolve("minmax-4bit"), cache_length=8)
    answer = jnp.zeros((2, 1), jnp.int32), jnp.ones(2, jnp.int32), jnp.array([True, False])
    with pytest.raises(ValueError, match=r"sequence 1 .*give finite values without a cache"):
        refuse_non_finite(model, inputs, cache, *answer)
    value = cache.text.value.at[1, 0, 0, 0, 0].set(jnp.inf)
    text = dataclasses.replace(cache.text, value=value)
    with pytest.raises(ValueError, match="layer 1 of the given cache holds NaN or infinity"):
        refuse_non_finite(model, inputs, dataclasses.replace(cache, text=text), *answer)
    refuse_non_finite(model, inputs, cache, *answer[:2], jnp.array([True, True]))


def test_a_token_of_the_answer_can_be_to_blame(model):
    inputs = batch(ROWS[1])
    unused = next(token for token in range(3, 63) if token not in ROWS[1])
    bad = broken(model, "['text']['embed_tokens']", unused)
    tokens = jnp.asarray([[3, unused]], jnp.int32)
    with pytest.raises(ValueError, match="the first NaN or infinity is in the token embeddings"):
        refuse_non_finite(bad, inputs, None, tokens, jnp.asarray([2]), jnp.asarray([False]))


def test_a_cache_of_another_model_is_one_clear_error(model):
    text = model.config.text
    shape = {
        "num_layers": text.num_hidden_layers,
        "batch": 2,
        "num_kv_heads": text.num_key_value_heads,
        "head_dim": text.head_dim,
        "cache_length": 5,
        "quant": vkq_jax.resolve("none"),
        "dtype": jnp.float32,
    }
    inputs = batch(*ROWS)
    check_cache(model, inputs, None)
    check_cache(model, inputs, vkq_jax.empty_cache(**shape))
    for name, other, said in (
        ("num_layers", 4, "it has 4 layers, the model has 3"),
        ("num_kv_heads", 1, "3 layers, 1 KV heads, 16 head_dim in float32"),
        ("head_dim", 8, "3 layers, 2 KV heads, 8 head_dim in float32"),
        ("dtype", jnp.bfloat16, "in bfloat16, the model's have 3 layers.* in float32"),
        ("batch", 3, r"it holds 3 sequences, inputs 2; vkq_jax\.take_sequences"),
    ):
        cache = vkq_jax.empty_cache(**shape | {name: other})
        with pytest.raises(ValueError, match=f"cache: .*{said}") as error:
            models.generate(model, inputs, cache=cache, max_new_tokens=1)
        assert len(str(error.value)) < 400
    cache = vkq_jax.empty_cache(**shape)
    values = cache.text.value.astype(jnp.bfloat16)
    mixed = dataclasses.replace(cache, text=dataclasses.replace(cache.text, value=values))
    with pytest.raises(ValueError, match=r"its values have .*bfloat16"):
        check_cache(model, inputs, mixed)
