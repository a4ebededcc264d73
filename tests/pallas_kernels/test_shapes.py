"""Published shapes: consistent with themselves and with the parameter counts of their models."""

import pytest

from pallas_kernels.shapes import SHAPES, find_shape


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_heads_share_the_keys_evenly(shape):
    assert SHAPES[shape.name] is shape
    assert shape.num_heads == shape.num_kv_heads * shape.queries_per_kv_head


# Parameters of the text towers, in 10^9, as published: Vicuna / Llama 2 7B (64 rows of vocabulary
# added), Mistral 7B v0.2 (likewise), InternLM2.5 7B, Qwen3 8B, Qwen2.5 7B.
@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llava-1.5-7b", 6.739),
        ("llava-next-7b", 7.242),
        ("internvl2.5-8b", 7.738),
        ("qwen3-vl-8b", 8.190),
        ("qwen2.5-vl-7b", 7.616),
    ],
)
def test_figures_add_up_to_the_published_size(name, billions):
    shape = find_shape(name)
    attention = 2 * shape.width * shape.head_dim * (shape.num_heads + shape.num_kv_heads)
    block = attention + 3 * shape.width * shape.mlp_width
    total = shape.num_layers * block + 2 * shape.vocab_size * shape.width
    assert total / 1e9 == pytest.approx(billions, rel=1e-3)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown shape 'llava', known are llava-1\.5-7b"):
        find_shape("llava")
