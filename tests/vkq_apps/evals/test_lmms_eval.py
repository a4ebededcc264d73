"""The model class for lmms-eval, with a stand-in of lmms-eval's interface."""

import importlib
import sys
import types

import numpy as np
import pytest
from PIL import Image

import models
from vkq_apps.training.heldout import heldout

MODULE = "vkq_apps.evals.lmms_eval"


class Base:
    """The stand-in has the attributes that lmms-eval's `lmms` gives its models."""

    def __init__(self):
        self.task_dict, self.partial = {}, []
        self.cache_hook = types.SimpleNamespace(
            add_partial=lambda *added: self.partial.append(added)
        )


@pytest.fixture
def made(monkeypatch):
    """The module, imported where lmms-eval seems to be."""
    manifests = types.ModuleType("lmms_eval.models.registry_v2")
    vars(manifests)["ModelManifest"] = lambda name, simple_class_path: (name, simple_class_path)
    api = types.ModuleType("lmms_eval.api.model")
    vars(api)["lmms"] = Base
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, api.__name__, api)
    monkeypatch.setitem(sys.modules, manifests.__name__, manifests)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    module = importlib.import_module(MODULE)
    yield module
    sys.modules.pop(MODULE, None)


def request(*args):
    return types.SimpleNamespace(args=args)


def test_requests_of_equal_options_are_answered_together(made, monkeypatch):
    calls, texts = [], ["yes\nor no", " no "]

    def generate(model, inputs, **options):
        asked = options["max_new_tokens"], options["sampling"].temperature, options["quantize_at"]
        calls.append((inputs["prompts"], [len(own) for own in inputs["images"]], *asked))
        return types.SimpleNamespace(tokens=None, lengths=None)

    monkeypatch.setattr(made, "find_codes", lambda *given: (None, None))
    monkeypatch.setattr(models, "load", lambda folder, layers_apart: None)
    monkeypatch.setattr(models, "chat_prompt", lambda model, question, **counts: question)
    monkeypatch.setattr(models, "prepare", lambda model, **given: given)
    monkeypatch.setattr(models, "pad_to_multiple", lambda inputs, size: inputs)
    monkeypatch.setattr(models, "generate", generate)
    monkeypatch.setattr(models, "decode", lambda model, tokens, lengths: texts)
    model = made.VkqJax("folder", quant="none", batch_size="2", device="cuda:0")
    model.task_dict = {"pope": {"test": [Image.new("RGB", (8, 8))] * 4}}
    short, long = {"max_new_tokens": 4, "until": ["\n"]}, {"temperature": 0.5, "do_sample": True}
    got = model.generate_until(
        [
            request(f"<image> {place}?", own, lambda doc: [doc], place, "pope", "test")
            for place, own in enumerate([short, long, short, short])
        ]
    )
    assert got == ["yes", "yes\nor no", "no", "yes"]
    assert calls == [
        (["0?", "2?"], [1, 1], 4, 0.0, "image"),
        (["3?", "3?"], [1, 1], 4, 0.0, "image"),
        (["1?", "1?"], [1, 1], 128, 0.5, "image"),
    ]
    assert model.partial[-1] == ("generate_until", ("<image> 1?", long), "yes\nor no")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretrained": "tiny", "batch_size": "auto"}, "batch_size: expected a whole number"),
        ({"pretrained": "tiny", "use_cache": True}, "vkq_jax knows no option 'use_cache'"),
        ({"pretrained": "tiny", "quantize_at": "end"}, "expected prompt or image, got 'end'"),
        ({"pretrained": "tiny", "quant": "vkq-9bit"}, "unknown preset 'vkq-9bit'"),
    ],
)
def test_options_are_checked_before_a_model_is_loaded(made, monkeypatch, options, message):
    monkeypatch.setattr(models, "load", None)
    with pytest.raises(ValueError, match=message):
        made.VkqJax(**options)
    assert made.manifest() == ("vkq_jax", f"{MODULE}.VkqJax")


@pytest.mark.ci  # compiles two programs of the embedded model
def test_the_embedded_model_answers_and_chooses(made):
    picture = heldout("shapes", 0)
    turn = picture.turns[0]
    model = made.VkqJax("tiny", quant="vkq-1bit")
    model.task_dict = {"shapes": {"test": [picture.image]}}
    place = (lambda doc: [doc], 0, "shapes", "test")
    (answer,) = model.generate_until([request(turn.question, {"max_new_tokens": 8}, *place)])
    assert answer == turn.answer
    right, wrong = model.loglikelihood(
        [request(turn.question, text, *place) for text in (turn.answer, "nothing")]
    )
    assert right[1]
    assert not wrong[1]
    assert right[0] < wrong[0]
    assert np.isfinite([right[0], wrong[0]]).all()
