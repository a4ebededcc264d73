"""Comparison of a family with transformers' PyTorch model; for tests of the parity group only."""

import json
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import Model
from models.families.registry import family_of

__all__ = ["assert_parity", "assert_saved", "randomize", "save", "since"]


def since(version: str, reason: str) -> pytest.MarkDecorator:
    """Skips a comparison with an older transformers, which computes something else there."""
    installed = tuple(map(int, metadata.version("transformers").split(".")[:2]))
    wanted = tuple(map(int, version.split(".")))
    return pytest.mark.skipif(installed < wanted, reason=f"transformers < {version}: {reason}")


def randomize(model: Any, seed: int = 0) -> Any:
    """Random weights, wide enough for logits to lie far apart; norms stay close to theirs."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.normal_(0, 1.0 if "embed_tokens" in name else p[0].numel() ** -0.5)
            else:
                p.add_(torch.randn_like(p), alpha=0.2)
    return model.eval()


def save(model: Any, folder: Path, **options: Any) -> Model:
    """Saved by transformers, loaded by this library in float32."""
    model.save_pretrained(folder, **options)
    return models.load(folder, dtype=jnp.float32)


def assert_saved(
    theirs: Any, ours: Model, folder: Path, kept: Callable[[str], bool] = lambda name: True
) -> None:
    """transformers reads the weights that are saved here; `kept` says which names are."""
    models.save_weights(ours, folder)
    again = type(theirs).from_pretrained(folder).state_dict()
    for name, tensor in theirs.state_dict().items():
        if kept(name):
            np.testing.assert_array_equal(again[name], tensor)


def assert_parity(
    theirs: Any,
    ours: Model,
    arrays: dict[str, np.ndarray],
    *,
    new_tokens: int = 8,
    tolerance: float = 1e-4,
    extra: Callable[[dict[str, Any]], dict[str, Any]] = lambda tensors: tensors,
) -> None:
    """Logits of whole prompts agree, and greedy tokens are equal, coded at either time.

    Args:
        theirs: transformers' model, float32. ours: the same, loaded.
        arrays: what the family's processor gives: input_ids, attention_mask, pixel_values, ...
        new_tokens: of the greedy answers.
        tolerance: of logits, which must be larger than 1 somewhere.
        extra: changes what transformers' model is called with.
    """
    import torch

    inputs = models.prepare(ours, **arrays)
    tensors = extra({name: torch.tensor(np.asarray(value)) for name, value in arrays.items()})
    mask = np.asarray(inputs.mask)
    with torch.no_grad():
        expected = theirs(**tensors).logits.float().numpy()
        answers = theirs.generate(
            **tensors,
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[:, mask.shape[1] :].numpy()
    assert np.abs(expected[mask]).max() > 1
    got = np.asarray(models.forward(ours, inputs))
    error = float(np.abs(got - expected)[mask].max())
    assert error < tolerance
    times = ("prompt",) if ours.visual_depends_on_question else ("prompt", "image")
    for quantize_at in times:
        generation = models.generate(
            ours,
            inputs,
            quant="none",
            max_new_tokens=new_tokens,
            stop_tokens=(),
            quantize_at=quantize_at,
        )
        np.testing.assert_array_equal(generation.tokens, answers)
    if file := os.environ.get("VKQ_SUPPORT_FILE"):
        _record(Path(file), theirs, ours, inputs, error)


_IN_ONE_BIT: set[tuple[str, str]] = set()


def _record(file: Path, theirs: Any, ours: Model, inputs: models.Inputs, error: float) -> None:
    """Adds a line about a comparison that held to the file that `docs/support.py` reads.

    The first of each family and text decoder also answers in 1 bit.
    """
    text = theirs.config.get_text_config().model_type
    family = ours.config.model_type, text
    if family not in _IN_ONE_BIT:
        answer = models.generate(ours, inputs, quant="vkq-1bit", max_new_tokens=2, stop_tokens=())
        assert (np.asarray(answer.lengths) == 2).all()
        _IN_ONE_BIT.add(family)
    record = {
        "model_type": theirs.config.model_type,
        "text": text,
        "vision": theirs.config.vision_config.model_type,
        "logit_error": error,
        "clips": family_of(ours.config.model_type).processing().clips(ours.config) is not None,
    }
    with file.open("a") as lines:
        lines.write(json.dumps(record) + "\n")
