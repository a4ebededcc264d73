"""`vkq demo` and `vkq generate`: what programs and people get."""

import json

from tests.support.command import run
from vkq_apps.cli.ask import _show


def test_demo_reads_the_receipt_from_one_bit(capsys):
    code, out, _ = run(capsys, "demo", "--json")
    record = json.loads(out)
    assert code == 0
    assert set(record) == {
        "image",
        "prompt",
        "answer",
        "answer_full_precision",
        "visual_tokens",
        "visual_kv_bytes",
        "visual_kv_bytes_full_precision",
        "visual_kv_reduction",
        "seconds",
    }
    assert record["answer"] == record["answer_full_precision"] == "$385.16"
    assert record["visual_tokens"] == 576
    assert record["visual_kv_reduction"] >= 0.9


def test_generate_takes_codes_by_layer_and_text_in_8_bits(capsys, picture):
    options = ["--model", "tiny", "--image", picture, "--prompt", "what is this?", "--json"]
    quant = "minmax-1bit/0=none/-1=none"
    options += ["--quant", quant, "--text-bits", "8", "--max-new-tokens", "1", "--no-compare"]
    code, out, _ = run(capsys, "generate", *options)
    record = json.loads(out)
    assert code == 0
    assert record["quant"] == quant
    # 6 layers, 4 KV heads of 64 channels, a bank of 64 tokens, scales in bfloat16.
    assert record["text_bits"] == 8
    assert record["text_kv_bytes"] == 2 * 6 * 4 * 64 * (64 + 2)
    # Four of six layers in about 1 bit.
    assert 0.6 < record["visual_kv_reduction"] < 4 / 6


def test_generate_draws_at_random_by_the_seed(capsys, picture):
    ask = ["generate", "--model", "tiny", "--image", picture, "--prompt", "what is it?", "--json"]
    ask += ["--max-new-tokens", "3", "--no-compare", "--temperature", "5", "--top-k", "300"]
    answers = []
    for seed in ("1", "1", "2"):
        code, out, _ = run(capsys, *ask, "--top-p", "0.99", "--seed", seed)
        assert code == 0
        answers.append(json.loads(out)["answer"])
    assert json.loads(out)["sampling"] == {
        "temperature": 5.0,
        "top_k": 300,
        "top_p": 0.99,
        "seed": 2,
    }
    assert answers[0] == answers[1] != answers[2]


def test_generate_shows_a_table_to_people(capsys, picture):
    code, out, err = run(
        capsys, "generate", "--model", "tiny", "--image", picture,
        "--prompt", "describe the picture", "--max-new-tokens", "2", "--no-compare",
    )  # fmt: skip
    assert code == 0
    assert "vkq-1bit" in out
    assert "576 visual tokens" in out
    assert "in all" in err


def test_an_empty_answer_is_not_one_that_nobody_asked_for(capsys):
    record = {
        "answer": "",
        "answer_full_precision": None,
        "prompt": "hi",
        "visual_tokens": 1,
        "visual_kv_bytes": 1,
        "visual_kv_bytes_full_precision": 2,
        "visual_kv_reduction": 0.5,
        "seconds": 1,
    }
    _show(record, "vkq-1bit", json=False)
    full, coded = capsys.readouterr().out.splitlines()[-3:-1]
    assert "(not asked)" in full
    assert "(empty)" in coded


def test_an_unreadable_image_and_more_images_than_the_context_holds(capsys, tmp_path, picture):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    ask = ["generate", "--model", "tiny", "--prompt", "USER: <image> hi ASSISTANT:"]
    code, _, err = run(capsys, *ask, "--image", str(broken))
    assert code == 2
    assert "broken.png" in err.splitlines()[-1]
    code, _, err = run(capsys, *ask, "--image", picture, "--image", picture)
    assert code == 2
    assert "the prompt is too long: 1152 visual and 0 text tokens" in err.splitlines()[-1]


def test_an_answer_longer_than_the_context_left_by_the_prompt(capsys, picture, monkeypatch):
    """Before loading the prompt's text is not known; behind it, it is."""
    monkeypatch.setattr("models.stream", None)
    ask = ["generate", "--model", "tiny", "--image", picture, "--prompt", "what is it?"]
    code, _, err = run(capsys, *ask, "--max-new-tokens", "440")
    assert code == 2
    assert "the model's context holds 1024 tokens, 58" in err.splitlines()[-1]
