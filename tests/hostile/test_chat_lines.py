"""Lines of `vkq chat`: each gets one JSON object, none ends the conversation."""

import io
import json
import random

import pytest
from PIL import Image

from vkq_apps.cli.chat import _lines, _Talk
from vkq_apps.conversation import CacheSize, Turn
from vkq_apps.evals.datasets import read_data

PARTS = [
    "/image",
    "/video",
    "/bytes",
    "/reset",
    "/help",
    "/quit",
    "/",
    "//",
    "what is it?",
    "picture.png",
]
PARTS += [
    " ",
    "\t",
    "\x1b[31m",
    "[/red]",
    "{}%s",
    "~",
    "~nobody/x",
    "é🧾",
    "\udcff",
    "\x00",
    "x" * 5000,
]
FAILURES = [ValueError("bad\nnews"), RuntimeError("x" * 9000), MemoryError(), OSError(5, "broken")]


class Asked:
    """A conversation that answers, or fails, by the seed."""

    size = CacheSize(1, 2, 3, 4, 5)

    def __init__(self, rng):
        self.rng = rng

    def reset(self):
        pass

    def ask(self, question, pictures, clips, *, on_prompt, on_text, stop):
        if self.rng.random() < 0.4:
            raise self.rng.choice(FAILURES)
        on_text("a \N{REPLACEMENT CHARACTER}")
        return Turn("a b", True, False, 2, 0.1)


def test_every_line_gets_one_object(cases, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 20)).save("picture.png")
    answers = 0
    for case in cases(60):
        rng = random.Random(f"chat lines/{case}")
        talk = _Talk(Asked(rng), [], [], fps=None, json=True)
        for _ in range(5):
            parts = rng.choices(PARTS, k=rng.randint(1, 3))
            line = rng.choice([" ", ""]).join(parts).strip()
            if not line:
                continue
            goes_on = talk.answer(line)
            out, err = capsys.readouterr()
            assert goes_on == (line.partition(" ")[0] != "/quit")
            assert "Traceback" not in err
            records = [json.loads(text) for text in out.splitlines()]
            assert len(records) == goes_on
            for record in records:
                assert len(record.get("error", "")) < 400
            answers += sum("answer" in record for record in records)
    assert answers


def test_the_home_of_nobody_is_a_missing_file(capsys):
    talk = _Talk(Asked(random.Random(0)), [], [], fps=None, json=True)
    assert talk.answer("/image ~nobody-here/x.png")
    assert json.loads(capsys.readouterr().out) == {
        "error": "image file ~nobody-here/x.png does not exist"
    }
    with pytest.raises(FileNotFoundError, match="expected a JSONL file"):
        read_data(["jsonl=~nobody-here/x.jsonl"])


def test_lines_that_are_no_text_are_read(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b" a\xff\r\n\n\x00b"), "utf-8"))
    assert list(_lines()) == ["a\N{REPLACEMENT CHARACTER}", "", "\x00b"]
