"""`vkq chat` through a pipe: one answer a line, and nothing lost to a bad line."""

import io
import json
import signal
import sys

import numpy as np
import pytest
from PIL import Image

from tests.models.hf_files import random_weights, write_checkpoint, write_processor
from tests.support.command import run
from vkq_apps.cli.chat import _Printed


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """The command's first words, and a picture."""
    folder = write_processor(tmp_path_factory.mktemp("chat"))
    write_checkpoint(folder, random_weights())
    picture = folder / "picture.png"
    Image.fromarray(np.full((40, 40, 3), 200, np.uint8)).save(picture)
    return ["chat", "--model", str(folder), "--max-new-tokens", "3"], str(picture)


def test_a_conversation_survives_bad_lines(chat, capsys, monkeypatch):
    command, picture = chat
    lines = ["what is this ?", "", "/bytes", "/image /no.png", "/picture x", "/image", "/video x"]
    lines += ["<image>"]
    lines += [f"/image {picture}", "is this red", "what ?", "/reset", "/bytes", "/quit", "never"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    code, out, err = run(capsys, *command, "--image", picture, "--json")
    records = [json.loads(line) for line in out.splitlines()]
    first, size, *errors, added, second, third, reset, empty = records
    assert code == 0
    assert (first["images"], second["images"], third["images"]) == ([picture], [picture], [])
    assert first["new_tokens"] == 3
    assert size["cache"] == first["cache"]
    assert [list(record) for record in errors] == [["error"]] * 5
    texts = ("/no.png does not exist", "no such command", "the name of a picture")
    for record, said in zip(errors, (*texts, "take pictures alone", "image"), strict=True):
        assert said in record["error"]
        assert record["error"] in err
    assert added == {"image": picture, "waiting": 1}
    assert reset == {"reset": True}
    visual = [record["cache"]["visual_tokens"] for record in (first, second, third, empty)]
    assert visual == [visual[0], 2 * visual[0], 2 * visual[0], 0]
    # A cut answer gets its stop token; the template's words of the turn and the answer follow.
    words = {False: 1, True: 0}[second["finished"]] + len(["USER:", "what", "?", "ASSISTANT:"])
    grown = third["cache"]["text_tokens"] - second["cache"]["text_tokens"]
    assert grown == words + third["new_tokens"]
    assert 0 < 2 * first["cache"]["visual_kv_bytes"] == second["cache"]["visual_kv_bytes"]


def test_people_get_the_answer_on_stdout(chat, capsys, monkeypatch):
    command, picture = chat
    monkeypatch.setattr(sys, "stdin", io.StringIO("what is this ?\n/bytes\n"))
    code, out, err = run(capsys, *command, "--image", picture)
    assert code == 0
    assert len(out.splitlines()) == 1
    assert "/quit or Ctrl-D ends" in err
    assert "visual tokens in" in err


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(chat, capsys, monkeypatch):
    """The signal comes while the first answer grows, and twice in the third."""
    command, picture = chat
    command = [*command[:-1], "8"]
    grow, presses = _Printed.grow, iter([1, 0, 0, 0, 0, 2])

    def pressed(self, text):
        grow(self, text)
        for _ in range(next(presses, 0)):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(_Printed, "grow", pressed)
    lines = ["what is this ?", "is this red", "what ?", "never asked"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    code, out, err = run(capsys, *command, "--image", picture, "--json")
    first, second = (json.loads(line) for line in out.splitlines())
    assert (first["stopped"], first["finished"], first["new_tokens"]) == (True, False, 2)
    assert (second["stopped"], second["new_tokens"]) == (False, 8)
    words = 1 + len(["USER:", "is", "this", "red", "ASSISTANT:"])  # and the stop token
    grown = second["cache"]["text_tokens"] - first["cache"]["text_tokens"]
    assert grown == words + second["new_tokens"]
    assert code == 130
    assert err.splitlines()[-1] == "vkq: interrupted"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image", "/no.png"], "/no.png does not exist"),
        (["--quant", "vkq-7bit"], "unknown preset"),
        (["--top-p", "0.5"], "--top-p: expected a --temperature above 0"),
        (["--max-new-tokens", "100000000"], "--max-new-tokens: expected at most"),
        (["--tables", "/none"], "/none"),
        (["--text-bits", "16"], "'--text-bits': expected 8, got 16"),
    ],
)
def test_bad_options_end_it_before_the_model_loads(chat, capsys, monkeypatch, options, message):
    monkeypatch.setattr("models.load", None)
    command = chat[0][:3] if "--max-new-tokens" in options else chat[0]  # an option is given once
    code, out, err = run(capsys, *command, *options)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
