"""Mllama against transformers' model: pictures of several shapes, unlike rows, both layouts."""

import numpy as np
import pytest

import models
from tests.support.hf_parity import assert_parity, randomize, save
from tests.support.mllama import with_mask
from tests.support.rows import padded_rows

pytestmark = pytest.mark.parity

SIZE, TILES, VOCABULARY = 14, 4, 60
IMAGE = VOCABULARY + 2
SHAPES = ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))


def torch_model(*, vision=None, **text):
    import transformers

    config = transformers.MllamaConfig(
        vision_config={
            "hidden_size": 8,
            "intermediate_size": 12,
            "num_hidden_layers": 3,
            "num_global_layers": 2,
            "attention_heads": 2,
            "image_size": SIZE,
            "patch_size": 7,
            "vision_output_dim": 24,
            "intermediate_layers_indices": [2, 0],
            **(vision or {}),
        },
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "cross_attention_layers": [1, 4],
            "pad_token_id": 0,
            "eos_token_id": 2,
            **text,
        },
        image_token_index=IMAGE,
    )
    model = transformers.MllamaForConditionalGeneration._from_config(
        config, attn_implementation="eager"
    )
    return randomize(model)


def pictures(*rows, seed=0):
    """The processor's arrays for pictures of these shapes (their numbers, from 1), row by row."""
    rng = np.random.default_rng(seed)
    most = max(map(len, rows))
    pixels = np.zeros((len(rows), most, TILES, 3, SIZE, SIZE), np.float32)
    ratio = np.zeros((len(rows), most), np.int64)
    is_tile = np.zeros((len(rows), most, TILES), np.int64)
    is_tile[..., 0] = 1
    for i, row in enumerate(rows):
        for j, shape in enumerate(row):
            count = int(np.prod(SHAPES[shape - 1]))
            pixels[i, j, :count] = rng.normal(size=(count, 3, SIZE, SIZE))
            ratio[i, j], is_tile[i, j, :count] = shape, 1
    return {"pixel_values": pixels, "aspect_ratio_ids": ratio, "aspect_ratio_mask": is_tile}


CASES = {
    "cross-attention in layers 1 and 4": {},
    "a repeating pattern, layer 0, RoPE of Llama 3": {
        "num_hidden_layers": 7,
        "cross_attention_layers": [0, 2, 4],
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "vision": {"hidden_act": "quick_gelu", "intermediate_layers_indices": [-1, 0]},
    },
}


@pytest.mark.parametrize("name", CASES)
def test_transformers_model_gives_the_same_logits_and_tokens(name, tmp_path):
    theirs = torch_model(**CASES[name])
    ours = save(theirs, tmp_path, save_original_format="layer 0" not in name)
    rows = padded_rows([3, IMAGE, 5, 6, IMAGE, 7, 8], [IMAGE, IMAGE, 4])
    arrays = with_mask(rows, pictures([6, 1], [2, 5]), IMAGE)
    if "layer 0" in name:  # transformers cannot generate here
        import torch

        with torch.no_grad():
            expected = theirs(**{k: torch.tensor(v) for k, v in arrays.items()}).logits.numpy()
        inputs = models.prepare(ours, **arrays)
        got = np.asarray(models.forward(ours, inputs))
        assert np.abs(got - expected)[np.asarray(inputs.mask)].max() < 1e-4
        return
    assert_parity(theirs, ours, arrays)
    assert_parity(theirs, ours, padded_rows([3, 4, 5, 6], [7, 8]))


def logits_of(theirs, arrays):
    import torch

    tensors = {name: torch.tensor(value) for name, value in arrays.items()}
    with torch.no_grad():
        return theirs(**tensors).logits.numpy()


def test_each_row_is_what_transformers_makes_of_it_alone(tmp_path):
    """In transformers' batches rows with fewer pictures look at the padding of others, too."""
    theirs = torch_model()
    ours = save(theirs, tmp_path)
    tokens = [3, IMAGE, 5, IMAGE, 6], [7, 8, 9], [4, IMAGE, IMAGE, 5, IMAGE]
    shapes = [5, 1], [], [2, 6, 3]
    inputs = models.prepare(ours, **with_mask(padded_rows(*tokens), pictures(*shapes), IMAGE))
    got = np.asarray(models.forward(ours, inputs))
    flat = [row for row in pictures(*shapes)["aspect_ratio_ids"].ravel().tolist() if row]
    assert inputs.vision_layout.aspect_ratio.tolist() == flat
    for row, own in enumerate(tokens):
        alone = padded_rows(own)
        if shapes[row]:
            images = pictures(*shapes)
            held = {name: x[row : row + 1, : len(shapes[row])] for name, x in images.items()}
            alone = with_mask(alone, held, IMAGE)
        expected = logits_of(theirs, alone)[0]
        assert np.abs(got[row][np.asarray(inputs.mask)[row]] - expected).max() < 1e-4


def test_turns_one_after_another_are_a_whole_conversation(tmp_path):
    """The second turn has no picture and sees the first one's; the third has one of its own."""
    theirs = torch_model()
    ours = save(theirs, tmp_path)
    turns, images = [[3, IMAGE, IMAGE, 5], [6, 7], [8, IMAGE, 9]], pictures([2, 1, 5])
    own = [slice(0, 2), None, slice(2, 3)]
    said, cache = [], None
    for turn, part in zip(turns, own, strict=True):
        arrays = padded_rows(turn)
        if part is not None:
            arrays |= {name: x[:, part] for name, x in images.items()}
        inputs = models.prepare(ours, **arrays)
        answer = models.generate(
            ours, inputs, quant="none", cache=cache, max_new_tokens=2, stop_tokens=()
        )
        said, cache = [*said, *turn], answer.cache
        count = said.count(IMAGE)
        seen = {name: x[:, :count] for name, x in images.items()}
        for token in np.asarray(answer.tokens)[0].tolist():
            whole = with_mask(padded_rows(said), seen, IMAGE)
            assert token == logits_of(theirs, whole)[0, -1].argmax()
            said.append(token)
    assert [n.tolist() for n in cache.visual_lengths] == [[3 * 5], [2 * 5]]
