"""Weight files and their index mutated by header, by bytes and by structure."""

import importlib
import itertools
import json
import os
import random
import shutil
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from tests.models.hf_files import random_weights, write_checkpoint

DTYPES = ("F32", "F16", "BF16", "F64", "I64", "I8", "U8", "BOOL", "F8_E4M3", "F4", "C64", "x", 3)
NUMBERS = (0, 1, -1, 7, 16, 2**31, 2**62, 2**63, 2**64, 10**30, 1.5, True, None, "8", [])
FOREIGN = ("a", "", "__metadata__", "x" * 5000, "\n\x1b[2J", "\ud83d", "visual.a", "module.b")
SHARDS = (
    *("../w", "/etc/passwd", "", ".", "a\0b", "x" * 5000, "\ud800", "gone.safetensors", "..\\w"),
    *(None, 3, [], {}),
)


def split(content):
    """The header of a safetensors file, and the data behind it."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header, data):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def mutated_header(rng, content):
    header, data = split(content)
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(list(header) or ["a"])
        entry = header.setdefault(name, {})
        shape, offsets = entry.get("shape"), entry.get("data_offsets")
        match rng.randrange(8):
            case 0:
                entry["dtype"] = rng.choice(DTYPES)
            case 1 if shape:
                shape[rng.randrange(len(shape))] = rng.choice(NUMBERS)
            case 2 if offsets:
                offsets[rng.randrange(2)] = rng.choice(NUMBERS)
            case 3:
                header[rng.choice(FOREIGN)] = header.pop(name)
            case 4:
                del header[name]
            case 5:
                entry["shape"] = rng.choice(([], [0], [1, *(shape or ())], (shape or [])[::-1], 3))
            case 6:
                header[name] = rng.choice((None, 3, [], {}, {"dtype": "F32"}))
                break
            case _:
                header["__metadata__"] = rng.choice(({}, {"format": "tf"}, {"a": 3}, [], None))
                break
    return join(header, data)


def mutated_bytes(rng, content):
    header = 8 + struct.unpack("<Q", content[:8])[0]
    content = bytearray(content)
    match rng.randrange(6):
        case 0:
            return bytes(content[: rng.randrange(len(content))])
        case 1:
            return bytes(content) + bytes(rng.randrange(1, 100))
        case 2:
            content[:8] = struct.pack("<Q", rng.choice((0, 1, header, 2**32, 2**63, 2**64 - 1)))
        case 3:
            for _ in range(rng.randint(1, 4)):
                content[rng.randrange(header)] = rng.randrange(256)
        case 4:  # NaN and infinity among them
            at = header + 4 * rng.randrange((len(content) - header) // 4)
            content[at : at + 4] = rng.choice((b"\xff" * 4, b"\0\0\x80\x7f", b"\0\0\x80\xff"))
        case 5:
            return rng.choice((b"", b"{}", b"PK\3\4" + bytes(100), b"version https://git-lfs\n"))
    return bytes(content)


def check_one_line(error):
    assert str(error).isprintable(), repr(error)


def load_or_error(folder, one_clear_error):
    try:
        model = models.load(folder, dtype=jnp.float32)
    except Exception as error:
        one_clear_error(error)
        check_one_line(error)
        return False
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(model.params))
    return True


@pytest.mark.parametrize("mutate", [mutated_header, mutated_bytes])
def test_weight_files(tmp_path, cases, one_clear_error, mutate):
    folder = write_checkpoint(tmp_path, random_weights())
    file = folder / "model.safetensors"
    whole, loaded = file.read_bytes(), 0
    for case in cases(40):
        file.write_bytes(mutate(random.Random(f"{mutate.__name__}/{case}"), whole))
        loaded += load_or_error(folder, one_clear_error)
    assert loaded < len(cases(40))
    file.write_bytes(whole)
    assert load_or_error(folder, one_clear_error)


def mutate_index(rng, folder):
    """Changes the index, or which files it names."""
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    shards = index["weight_map"]
    for _ in range(rng.randint(1, 2)):
        name = rng.choice(list(shards))
        match rng.randrange(7):
            case 0:
                shards[name] = rng.choice(SHARDS)
            case 1:
                del shards[name]
            case 2:
                shards[rng.choice(FOREIGN)] = shards[name]
            case 3:
                shards[name] = rng.choice(sorted(set(map(str, shards.values()))))
            case 4:
                index["weight_map"] = rng.choice((None, [], {}, 3, "a", [shards]))
                break
            case 5:
                index["metadata"] = rng.choice((None, [], {"total_size": -1}))
            case 6:
                shutil.copy(
                    folder / "model-00001-of-00003.safetensors", folder / "gone.safetensors"
                )
    file.write_text(json.dumps(index))


def test_indexes(tmp_path, cases, one_clear_error):
    loaded = 0
    for case in cases(15):
        folder = write_checkpoint(tmp_path / str(case % 4), random_weights(), shards=3)
        mutate_index(random.Random(f"index/{case}"), folder)
        loaded += load_or_error(folder, one_clear_error)
        shutil.rmtree(folder)
    assert 0 < loaded < len(cases(15))


def _write_over(file):
    with file.open("r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        stream.write(bytes(4))


def _replace(file):
    shutil.copy(file, file.with_name("new"))
    os.replace(file.with_name("new"), file)


WRITES = {
    "emptied": lambda file: os.truncate(file, 0),
    "cut": lambda file: os.truncate(file, file.stat().st_size - 4),
    "longer": lambda file: os.truncate(file, file.stat().st_size + 4),
    "written over": _write_over,
    "deleted": Path.unlink,
    "replaced": _replace,
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("when", ["validated", "opened", "half read"])
def test_files_that_change_while_they_are_read(tmp_path, monkeypatch, one_clear_error, when, write):
    """A mapped tensor outlives a file that is deleted or replaced, but not one written to."""
    file = write_checkpoint(tmp_path, random_weights()) / "model.safetensors"
    os.utime(file, ns=(0, 0))  # clocks of file systems are coarse
    calls = itertools.count()

    def after(number, call):
        def changed(*arguments, **options):
            result = call(*arguments, **options)
            if next(calls) == number:
                WRITES[write](file)
            return result

        return changed

    place, number = {
        "validated": ("vkq_jax.files.regular_file.safe_open", 0),
        "opened": ("models.loading.Checkpoint", 0),
        "half read": ("models.checkpoints.weights._copy_checked", 20),
    }[when]
    module, _, name = place.rpartition(".")
    monkeypatch.setattr(place, after(number, getattr(importlib.import_module(module), name)))
    expected = write == "replaced" or (write == "deleted" and when != "validated")
    assert load_or_error(tmp_path, one_clear_error) == expected
    assert next(calls) > number
