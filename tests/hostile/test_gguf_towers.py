"""GGUF files of text towers, damaged: a whole tower, or one clear error.

Runs where the package is: uv run --group parity --with gguf --with accelerate pytest FILE.
"""

import random
import struct

import numpy as np
import pytest

from tests.hostile.test_configs import mutated_bytes
from tests.vkq_apps.training.test_judge import _write_tower
from vkq_apps.training.gguf_files import read_gguf_settings
from vkq_apps.training.text_tower import read_tower
from vkq_apps.training.tower_parts import _read_blocks

gguf = pytest.importorskip("gguf")
pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")

SETTINGS = {
    "block_count": 2,
    "context_length": 64,
    "embedding_length": 32,
    "feed_forward_length": 48,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.freq_base": 10000.0,
}
NO_SIZES = ("context_length", "attention.layer_norm_rms_epsilon", "rope.freq_base")
HOSTILE = (0, 1, 3, 2**31 - 1, 2**40, -1, 0.5, float("nan"), "x", [1, 2], None)
ADD = {int: "add_int64", float: "add_float32", str: "add_string", list: "add_array"}


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    return read_tower(_write_tower(tmp_path_factory.mktemp("towers")))


def write(file, tower, settings=None, left_out=()):
    """Writes a tower as a GGUF file; settings of None are left out."""
    writer = gguf.GGUFWriter(file, "qwen2")
    for key, value in (SETTINGS | (settings or {})).items():
        if type(value) is int and 0 <= value < 2**32:
            writer.add_uint32(f"qwen2.{key}", value)
        elif value is not None:
            getattr(writer, ADD[type(value)])(f"qwen2.{key}", value)
    model = tower.tokenizer["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * (len(tokens) - 1)])
    writer.add_token_merges(
        [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    )
    for add in (writer.add_eos_token_id, writer.add_bos_token_id, writer.add_pad_token_id):
        add(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 2)
    for name, tensor in tower.tensors.items():
        if name not in left_out:
            writer.add_tensor(names.get_name(name, (".weight", ".bias")), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def refused_or_whole(file, tower, one_clear_error):
    """Whether the file was read: with every tensor, since none is left out in silence."""
    try:
        found = read_tower(file)
    except ValueError as error:
        one_clear_error(error)
        return False
    assert set(found.tensors) == set(tower.tensors)
    assert found.eos == "<|end|>"
    return True


def test_settings_that_cannot_be(tower, tmp_path, cases, one_clear_error):
    assert refused_or_whole(write(tmp_path / "whole.gguf", tower), tower, one_clear_error)
    file = tmp_path / "tower.gguf"
    wrong = [(key, value) for key in SETTINGS for value in HOSTILE if SETTINGS[key] != value]
    for case in cases(20):
        rng = random.Random(f"gguf settings/{case}")
        if rng.random() < 0.2:
            name = rng.choice(sorted(tower.tensors))
            assert not refused_or_whole(write(file, tower, None, (name,)), tower, one_clear_error)
            continue
        key, value = rng.choice(wrong)
        read = refused_or_whole(write(file, tower, {key: value}), tower, one_clear_error)
        assert not read or key in NO_SIZES, (key, value)


def test_counts_that_no_file_has(tower, tmp_path, one_clear_error):
    """The reader would go through as many tensors, settings and elements of an array."""
    whole = write(tmp_path / "whole.gguf", tower).read_bytes()
    file = tmp_path / "tower.gguf"
    types = whole.index(b"tokenizer.ggml.token_type") + len("tokenizer.ggml.token_type") + 8
    for place in (8, 16, types):
        file.write_bytes(whole[:place] + struct.pack("<Q", 2**60) + whole[place + 8 :])
        assert not refused_or_whole(file, tower, one_clear_error)


def test_damaged_files(tower, tmp_path, cases, one_clear_error):
    whole = write(tmp_path / "whole.gguf", tower).read_bytes()
    file, header = tmp_path / "tower.gguf", whole.index(b"blk.1.ffn_down")
    for case in cases(20):
        rng = random.Random(f"gguf/{case}")
        damaged = bytearray(whole)
        if rng.random() < 0.3:
            damaged = mutated_bytes(rng, whole)
        else:
            for _ in range(rng.choice((1, 2, 8))):
                damaged[rng.randrange(header)] = rng.choice((0, 255, rng.randrange(256)))
        file.write_bytes(damaged)
        try:
            found = read_tower(file)
        except ValueError as error:
            one_clear_error(error)
        else:
            assert all(isinstance(x, np.ndarray) for x in found.tensors.values())


def test_parts_hold_the_tensors_of_the_file(tower, tmp_path):
    file = write(tmp_path / "tower.gguf", tower)
    blocks = _read_blocks(file, list(range(262)), read_gguf_settings(file)[0])
    assert set(blocks) == set(tower.tensors)
    for name, tensor in tower.tensors.items():
        np.testing.assert_array_equal(blocks[name].floats(), tensor)
