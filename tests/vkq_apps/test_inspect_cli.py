"""`vkq inspect`: what it writes and what it refuses."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models

import models
import vkq_jax
from tests.support.tiny_llava import IMAGE, tiny_model
from vkq_apps.answering import Answer
from vkq_apps.cli.inspect import inspect

PLOTS = {
    "prompt.png",
    "ranges_keys.png",
    "ranges_values.png",
    "errors.png",
    "attention_mass.png",
    "attention.png",
    "tokens.png",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with a processor for the tiny random model."""
    folder = tmp_path_factory.mktemp("checkpoint")
    words = ["<unk>", "<s>", "</s>", "USER:", "ASSISTANT:", "what", "colour", "?"]
    words += [f"<unused{i}>" for i in range(len(words), IMAGE)]
    vocabulary = {word: i for i, word in enumerate(words)} | {"<image>": IMAGE}
    tokenizer = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken("<image>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    files = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "eos_token": "</s>",
        },
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 16},
            "crop_size": {"height": 16, "width": 16},
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    return folder


@pytest.fixture
def arguments(checkpoint, tmp_path, monkeypatch):
    loaded = dataclasses.replace(tiny_model(), source=str(checkpoint))
    monkeypatch.setattr(models, "load", lambda path, **options: loaded)
    monkeypatch.setattr("vkq_apps.terminal.arguments.weight_bytes", lambda path: 0)
    monkeypatch.setattr(models, "read_config", lambda path: loaded.config)
    return {
        "model": "random",
        "image": [checkpoint / "picture.png"],
        "prompt": "what colour ?",
        "out_folder": tmp_path / "out",
        "json": True,
        "max_new_tokens": 2,
    }


def test_writes_plots_and_figures(arguments, capsys, monkeypatch):
    asked = []

    def ask(model, inputs, **options):
        asked.append((options["quant"], options["quantize_at"], options["max_new_tokens"]))
        text = "<b>" if options["quant"] == "none" else "a & b"
        return Answer(text, 1, 1, vkq_jax.CacheBytes(0, 0, 0, 0), None, None)

    monkeypatch.setattr("vkq_apps.cli.inspect.ask", ask)
    inspect(**arguments, quant="vkq-1bit")
    folder = arguments["out_folder"]
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((folder / "summary.json").read_text())
    assert {path.name for path in folder.iterdir()} == {
        *PLOTS,
        "report.html",
        "summary.json",
        "arrays.npz",
    }
    assert set(printed["files"]) == {path.name for path in folder.iterdir()}
    for name in PLOTS:
        with Image.open(folder / name) as plot:
            assert min(plot.size) > 200
    assert printed["quant"] == "vkq-1bit"
    assert printed["visual_spans"] == [[1, 16]]
    assert printed["prompt"] == "USER: <image>\nwhat colour ? ASSISTANT:"
    assert {"visual_tokens", "visual_kv_reduction", "mean", "layers", "seconds"} <= set(printed)
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(PLOTS) + 1
    assert "USER: &lt;image&gt;\nwhat colour ? ASSISTANT:" in page
    assert asked == [("none", "image", 2), ("vkq-1bit", "image", 2)]
    assert (printed["answer_full_precision"], printed["answer"]) == ("<b>", "a & b")
    assert "<td>&lt;b&gt;</td>" in page
    assert "<td>a &amp; b</td>" in page
    with np.load(folder / "arrays.npz") as arrays:
        assert arrays["weights_before"].shape == (3, 4, 16)

    # Again, over the earlier result: a table for people, two pictures, another preset.
    two = arguments | {"image": arguments["image"] * 2, "json": False}
    inspect(**two, quant="none")
    assert (folder / "report.html").read_text().count("<td>&lt;b&gt;</td>") == 2
    printed = capsys.readouterr()
    assert "mean" in printed.out
    assert "median" in printed.out
    assert "attention_mass.png" in printed.err
    names = {path.name for path in folder.iterdir()}
    assert {"attention_1.png", "attention_2.png", "tokens_1.png", "tokens_2.png"} <= names
    assert "attention.png" not in names


def test_refuses_before_loading(arguments, monkeypatch):
    def fail(path, **options):
        raise AssertionError("loaded")

    monkeypatch.setattr(models, "load", fail)
    with pytest.raises(ValueError, match="unknown preset 'vkq-1bits'"):
        inspect(**arguments, quant="vkq-1bits")
    arguments["out_folder"].mkdir()
    (arguments["out_folder"] / "notes.txt").touch()
    with pytest.raises(ValueError, match="is not empty"):
        inspect(**arguments)
    file = arguments["out_folder"] / "notes.txt"
    with pytest.raises(ValueError, match=r"notes\.txt is not a folder"):
        inspect(**arguments | {"out_folder": file})
    with pytest.raises(
        ValueError, match=r"expected a folder that can be written to, got .*notes\.txt"
    ):
        inspect(**arguments | {"out_folder": file / "new" / "plots"})


def test_bad_input_leaves_no_folder(arguments, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.png does not exist"):
        inspect(**arguments | {"image": [tmp_path / "gone.png"]})
    with pytest.raises(ValueError, match="more tokens than images"):
        inspect(**arguments | {"prompt": "<image> <image> what"})
    assert list(tmp_path.iterdir()) == []
