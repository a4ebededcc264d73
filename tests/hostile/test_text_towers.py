"""Folders and parts of pretrained text towers, damaged: a whole tower, or one clear error."""

import json
import random
import shutil

import numpy as np
import pytest

from tests.hostile.test_configs import HOSTILE, mutated_bytes
from tests.vkq_apps.training.test_judge import _write_tower
from vkq_apps.training.text_tower import read_tower
from vkq_apps.training.tower_parts import Blocks, save_parts

JSON = ("config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """A folder with one file of weights, and one with parts."""
    folder = tmp_path_factory.mktemp("towers")
    whole = _write_tower(folder)
    apart = shutil.copytree(whole, folder / "apart")
    (apart / "model.safetensors").unlink()
    tensors = {name: Blocks(x, "F32") for name, x in read_tower(whole).tensors.items()}
    save_parts(tensors, apart, 40_000)
    return whole, apart


def spoil(rng, folder):
    """Changes, doubles or removes a file."""
    file = rng.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    match rng.randrange(5):
        case 0:
            file.unlink()
        case 1:
            shutil.copy(
                file,
                file.with_name(rng.choice(("part-x.safetensors", "part-002-of-009.safetensors"))),
            )
        case 2:
            file = folder / rng.choice(JSON)
            content = json.loads(file.read_text())
            content[rng.choice(sorted(content))] = rng.choice(HOSTILE)
            file.write_text(json.dumps(content))
        case _:
            file.write_bytes(mutated_bytes(rng, file.read_bytes()))


@pytest.mark.filterwarnings("ignore")
def test_damaged_towers(towers, cases, one_clear_error, tmp_path):
    for case in cases(15):
        rng = random.Random(f"towers/{case}")
        folder = shutil.copytree(rng.choice(towers), tmp_path / str(case))
        spoil(rng, folder)
        try:
            tower = read_tower(folder)
        except Exception as error:
            one_clear_error(error)
            continue
        assert tower.eos
        assert tower.tokenizer["model"]["vocab"]
        assert all(isinstance(x, np.ndarray) for x in tower.tensors.values())
        shutil.rmtree(folder)


def test_a_file_that_is_no_gguf_is_one_clear_error(tmp_path, one_clear_error):
    for content in (b"", b"GGUF", b"GGUF" + bytes(60), b"\xff" * 100):
        file = tmp_path / "tower.gguf"
        file.write_bytes(content)
        with pytest.raises(ValueError, match="--text-tower") as caught:
            read_tower(file)
        one_clear_error(caught.value)
