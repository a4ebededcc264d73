"""Annotation files and logs of `vkq eval`, damaged: read, or refused in one clear line."""

import base64
import concurrent.futures
import errno
import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import models
from models.inputs.images import read_picture
from tests.vkq_apps.evals.test_datasets import FIXTURES, GOOD, save_picture
from vkq_apps.evals.batches import in_batches, prepare
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


def _again(records):
    records.append(records[0])


@pytest.mark.parametrize(
    ("name", "pattern", "change", "place"),
    [
        ("docvqa", "val*.json", lambda x: _again(x["data"]), ":12: expected an id of its own"),
        ("vqav2", "*questions.json", lambda x: _again(x["questions"]), ":8: expected an id of"),
        ("vqav2", "v2_m*.json", lambda x: _again(x["annotations"]), ":48: expected a question_id"),
        ("coco", "capt*.json", lambda x: _again(x["images"]), ":7: expected an id of its own"),
        (
            "coco",
            "capt*.json",
            lambda x: x.update(info={"images": [[1]]}, images=[*x.pop("images"), {"id": 2}]),
            ":26: expected a field 'file_name'",
        ),
        ("gqa", "*questions.json", lambda x: x.update({"\xe9": 3}), ":7: expected a JSON object"),
        ("docvqa", "val*.json", lambda x: x.update(data=[]), "records, got an empty list"),
    ],
)
def test_records_that_fit_no_data_set_are_named_by_their_line(
    name, pattern, change, place, tmp_path, one_clear_error
):
    """Ids given twice, and records whose name stands elsewhere in the file, too."""
    FIXTURES[name][0](tmp_path)
    (file,) = tmp_path.rglob(pattern)
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False))
    with pytest.raises(ValueError, match="expected") as error:
        read_data([f"{name}={tmp_path}"])
    one_clear_error(error.value)
    assert str(file) in str(error.value)
    assert place in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("which?", '"which?', ":2: expected tab-separated text"),  # takes the rows below with it
        ("which?", '"which" one?', ":2: expected tab-separated text"),
        ("hint", "question", ":1: expected columns of different names, got 'question' twice"),
        ("1000001", "1", ":3: expected an id of its own"),
        ("1000001", "\udcff", ":3: expected UTF-8"),
    ],
)
def test_tables_that_would_be_read_otherwise_are_named(old, new, place, tmp_path):
    FIXTURES["mmbench"][0](tmp_path)
    (file,) = tmp_path.rglob("*.tsv")
    text = file.read_text().replace(old, new, 1)
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match="expected") as error:
        read_data([f"mmbench={tmp_path}"])
    assert f"{file}{place}" in str(error.value)


def test_a_picture_of_another_folder_is_taken_only_where_there_is_one(tmp_path):
    FIXTURES["ocrbench"][0](tmp_path)
    (picture,) = tmp_path.rglob("1.png")

    def read():
        return read_data([f"ocrbench={tmp_path}"])["ocrbench"].choose(1, 0)[0].picture

    moved = tmp_path / "deep" / "OCRBench_Images" / "IIIT5K" / "1.png"
    moved.parent.mkdir(parents=True)
    picture.rename(moved)
    picture.mkdir()  # no picture
    save_picture(tmp_path / "svt" / "1.png")
    assert read() == str(moved)
    moved.rename(moved.with_name("2.png"))
    assert read() == str(tmp_path / "svt" / "1.png")
    save_picture(tmp_path / "other" / "1.png")
    with pytest.raises(ValueError, match=r"IIIT5K/1\.png, got 'none of this name, or several'"):
        read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": ["a", "a"]}, "expected 'choices' to be different texts"),
        ({"choices": ["a", " "]}, "expected 'choices' to be different texts"),
        ({"id": "\ud800"}, "expected 'id' to be a whole number or a text"),
        ({"id": " "}, "expected 'id' to be a whole number or a text"),
        ({"answer": 10**500}, "expected numbers of at most 400 digits, got one of 501"),
    ],
)
def test_a_record_that_cannot_be_asked_is_named(change, message, tmp_path, one_clear_error):
    save_picture(tmp_path / "x.png")
    path = tmp_path / "own.jsonl"
    path.write_text(f"\n{json.dumps({**GOOD, **change})}")
    with pytest.raises(ValueError, match=message) as error:
        read_data([f"jsonl={path}"])
    one_clear_error(error.value)
    assert str(error.value).startswith(f"{path}:2: ")


def test_a_sample_that_the_model_does_not_take_is_named_by_its_line(tmp_path, one_clear_error):
    model, path = models.load("tiny"), tmp_path / "own.jsonl"
    save_picture(tmp_path / "x.png")
    (tmp_path / "bad.png").write_text("no picture")
    for change, message in (
        ({"image": "bad.png"}, "cannot read image"),
        ({"question": "<image> what?"}, "more tokens than images"),
        ({"question": "long " * 9999}, "expected at most 984 tokens"),
        ({"answer": "a" * 500, "choices": ["a" * 500, "b"]}, "expected 1 to 40 tokens of its own"),
    ):
        records = [{**GOOD, "choices": ["a", "b"]}] if "choices" in change else [GOOD]
        path.write_text("\n".join(json.dumps(one) for one in (*records, {**GOOD, **change})))
        task = read_data([f"jsonl={path}"])["own"]
        (batch,) = in_batches(task, task.choose(2, 0), 4)
        with pytest.raises(ValueError, match=message) as error:
            prepare(model, batch, steps=40)
        one_clear_error(error.value)
        assert str(error.value).startswith(f"{path}:2: sample '2': ")


@pytest.mark.parametrize("place", ["/dev/zero", "/dev/urandom"])
def test_devices_that_never_end_are_refused(place, one_clear_error):
    with pytest.raises(ValueError, match="got a device") as error:
        read_text(Path(place))
    one_clear_error(error.value)


@pytest.mark.parametrize("pauses", [(0.0, 0.0), (0.1, 0.0), (0.0, 0.1)])
def test_a_pipe_is_read_to_its_end_however_late_somebody_writes(tmp_path, pauses):
    pipe, text = tmp_path / "pipe", "\ufeffWhat is it?\r\nWhere?\n" * 9999
    os.mkfifo(pipe)

    def write():
        time.sleep(pauses[0])
        with pipe.open("wb") as file:
            time.sleep(pauses[1])
            file.write(text.encode())

    with concurrent.futures.ThreadPoolExecutor() as pool:
        written = pool.submit(write)
        assert read_text(pipe) == text[1:].replace("\r\n", "\n")
        written.result()


def test_a_pipe_that_nobody_writes_to_is_no_hang(tmp_path, monkeypatch, one_clear_error):
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr("vkq_apps.files.text_files._WAIT", 0.1)
    with pytest.raises(
        ValueError, match="pipe: expected a text file, got a pipe that nob"
    ) as error:
        read_text(tmp_path / "pipe")
    one_clear_error(error.value)
    with pytest.raises(ValueError, match="got a pipe that nobody writes to"):
        read_data([f"jsonl={tmp_path / 'pipe'}"])


def test_a_log_on_a_full_disk_is_named(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    record = Record("none", "t", "0", "a", 3, 0.5, 1, 1.0, 1.0, 8, 32)
    log = SampleLog(tmp_path / "log", {})
    monkeypatch.setattr(os, "fsync", fail)
    for write in (lambda: SampleLog(tmp_path / "other", {}), lambda: log.add([record])):
        with pytest.raises(OSError, match=r"(log|other) cannot be written: No space left"):
            write()
