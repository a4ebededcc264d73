"""Annotation files and logs of `vkq eval`, damaged: read, or refused in one clear line."""

import base64
import errno
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.inputs.images import read_picture
from tests.vkq_apps.evals.test_datasets import FIXTURES, GOOD, save_picture
from vkq_apps.evals.datasets import read_data
from vkq_apps.evals.records import Record, SampleLog
from vkq_apps.files.text_files import read_text

STRANGE = [None, True, -1, 1e999, "", " ", "\x00", "x" * 2000, [], [[]], {}, {"a": []}, ["a", 3]]


def damage(rng, content):
    """Bytes with a few of them gone, doubled or changed; or a field of another type."""
    if rng.random() < 0.5:
        try:
            tree = json.loads(content)
        except ValueError:
            tree = None
        if tree is not None:
            return json.dumps(spoil(rng, tree)).encode()
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        match rng.randrange(3):
            case 0:
                del data[place : place + rng.randint(1, 20)]
            case 1:
                data[place:place] = data[max(0, place - 9) : place]
            case _:
                data[place:place] = bytes([rng.randrange(256)])
    return bytes(data)


def spoil(rng, tree):
    """The same tree with one node changed, taken out or doubled."""
    if isinstance(tree, dict) and tree and rng.random() < 0.9:
        name = rng.choice(list(tree))
        if rng.random() < 0.2:
            return {key: value for key, value in tree.items() if key != name}
        return {**tree, name: spoil(rng, tree[name])}
    if isinstance(tree, list) and tree and rng.random() < 0.9:
        place = rng.randrange(len(tree))
        return [*tree[:place], spoil(rng, tree[place]), *tree[place + rng.randint(0, 1) :]]
    return rng.choice(STRANGE)


def use(samples):
    """Uses samples as an evaluation does before the model sees them."""
    for sample in samples:
        assert sample.question
        assert sample.answers
        list(sample.load())


@pytest.mark.parametrize("name", FIXTURES)
def test_damaged_published_data(name, tmp_path, cases, one_clear_error):
    make = FIXTURES[name][0]
    for case in cases(4):
        folder = tmp_path / str(case)
        make(folder)
        rng = random.Random(f"eval data/{name}/{case}")
        suffixes = (".json", ".tsv", ".txt")
        file = rng.choice(sorted(path for path in folder.rglob("*") if path.suffix in suffixes))
        file.write_bytes(damage(rng, file.read_bytes()))
        try:
            task = read_data([f"{name}={folder}"])[name]
            samples = task.choose(10, case)
            use(samples)
            task.metric.scores(["a"] * len(samples), samples)
        except Exception as error:
            one_clear_error(error)


def test_damaged_data_of_ones_own(tmp_path, cases, one_clear_error):
    save_picture(tmp_path / "x.png")
    path = tmp_path / "own.jsonl"
    records = [GOOD, {**GOOD, "id": "b", "choices": ["a", "b"]}, {**GOOD, "answer": ["a", "b"]}]
    for case in cases(20):
        rng = random.Random(f"own data/{case}")
        lines = [json.dumps(record).encode() for record in records]
        place = rng.randrange(len(lines))
        lines[place] = damage(rng, lines[place])
        path.write_bytes(b"\n".join(lines))
        try:
            use(read_data([f"jsonl={path}"])["own"].choose(10, case))
        except Exception as error:
            one_clear_error(error)


def test_damaged_logs(tmp_path, cases, one_clear_error):
    path = tmp_path / "log.jsonl"
    head = {"seed": 1}
    for case in cases(20):
        rng = random.Random(f"log/{case}")
        records = [Record("none", "t", str(n), "a", 3, 0.5, 1, 1.0, 1.0, 8, 32) for n in range(3)]
        SampleLog(path, head).add(records)
        lines = path.read_bytes().splitlines()
        place = rng.randrange(len(lines))
        lines[place] = damage(rng, lines[place])
        path.write_bytes(b"\n".join(lines) + b"\n")
        try:
            log = SampleLog(path, head, resume=True)
            found = [log.get("none", "t", str(n)) for n in range(3)]
            assert all(record is None or record.positions > 0 for record in found)
        except Exception as error:
            one_clear_error(error)


def _said(samples):
    return [(s.key, s.question, s.answers, s.choices) for s in samples]


@pytest.mark.parametrize("name", [*FIXTURES, "jsonl"])
def test_marks_and_ends_of_lines_of_other_systems_change_nothing(name, tmp_path, one_clear_error):
    """As Windows writes text: a byte order mark, carriage returns; UTF-16 is named."""
    if name == "jsonl":
        save_picture(tmp_path / "x.png")
        data = tmp_path / "own.jsonl"
        data.write_text(f"{json.dumps(GOOD)}\n\n{json.dumps({**GOOD, 'id': 'b'})}\n")
        files, task = [data], "own"
    else:
        data, task = tmp_path / "data", name
        FIXTURES[name][0](data)
        suffixes = (".json", ".jsonl", ".tsv", ".txt")
        files = [path for path in data.rglob("*") if path.suffix in suffixes]
    expected = _said(read_data([f"{name}={data}"])[task].choose(10, 0))
    contents = {file: file.read_text() for file in files}
    for file, text in contents.items():
        file.write_text(text.replace("\n", "\r\n"), encoding="utf-8-sig", newline="")
    assert _said(read_data([f"{name}={data}"])[task].choose(10, 0)) == expected
    for file, text in contents.items():
        file.write_text(text, encoding="utf-16")
    with pytest.raises(Exception) as error:  # noqa: PT011  # its type is checked
        use(read_data([f"{name}={data}"])[task].choose(10, 0))
    one_clear_error(error.value)


@pytest.mark.parametrize("mode", ["I;16", "LA"])
def test_pictures_in_base64_are_read_as_those_of_files(tmp_path, mode):
    """A dark receipt in 16 bits is not white, and what is transparent is."""
    make, *_ = FIXTURES["mmbench"]
    make(tmp_path)
    grey = np.full((4, 4), 20_000, np.uint16)
    picture = Image.fromarray(grey) if mode == "I;16" else Image.new("LA", (4, 4), (0, 0))
    picture.save(tmp_path / "one.png")
    file = tmp_path / "mmbench_dev_en.tsv"
    head, first, *rest = file.read_text().splitlines()
    cells = first.split("\t")
    cells[head.split("\t").index("image")] = base64.b64encode(
        (tmp_path / "one.png").read_bytes()
    ).decode()
    file.write_text("\n".join([head, "\t".join(cells), *rest]) + "\n")
    sample, *_ = read_data([f"mmbench={tmp_path}"])["mmbench"].choose(2, 0)
    (read,) = sample.load()
    assert read.tobytes() == read_picture(tmp_path / "one.png").tobytes()
    assert read.getpixel((0, 0)) == ((78,) * 3 if mode == "I;16" else (255,) * 3)


@pytest.mark.parametrize("place", ["/dev/zero", "/dev/urandom"])
def test_devices_that_never_end_are_refused(place, one_clear_error):
    with pytest.raises(ValueError, match="got a device") as error:
        read_text(Path(place))
    one_clear_error(error.value)


def test_a_log_on_a_full_disk_is_named(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    record = Record("none", "t", "0", "a", 3, 0.5, 1, 1.0, 1.0, 8, 32)
    log = SampleLog(tmp_path / "log", {})
    monkeypatch.setattr(os, "fsync", fail)
    for write in (lambda: SampleLog(tmp_path / "other", {}), lambda: log.add([record])):
        with pytest.raises(OSError, match=r"(log|other) cannot be written: No space left"):
            write()
