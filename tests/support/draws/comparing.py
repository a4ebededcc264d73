"""A drawn model against transformers' own: logits of prompts, and greedy answers."""

import gc
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import models
from models import Model
from tests.support.draws.drawn import Drawn, torch_model
from tests.support.draws.texts import frequencies_grow

__all__ = ["NEW_TOKENS", "check_answers", "check_draws", "check_logits"]

TOLERANCE, NEW_TOKENS = 1e-4, 6


def check_draws(
    compare: Callable[[str, int, Path], None], name: str, cases: Iterable[int], folder: Path
) -> None:
    """Compares the draws of a name, each in a folder of its own; says which ones differ."""
    failed = []
    for case in cases:
        try:
            compare(name, case, folder / str(case))
        except Exception as error:
            error.add_note(f"case {case} of {name}")
            failed.append(error)
        if case % 20 == 19:
            jax.clear_caches()
            gc.collect()
    if failed:
        raise ExceptionGroup(f"{len(failed)} draws of {name}", failed)


def logits_of(theirs: Any, drawn: Drawn, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """transformers' logits; padding does not count as positions."""
    import torch

    tensors = {name: torch.tensor(value) for name, value in arrays.items()}
    if drawn.positions:
        tensors["position_ids"] = (tensors["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    floats = {name: x.to(theirs.dtype) for name, x in tensors.items() if x.is_floating_point()}
    with torch.no_grad():
        return theirs(**tensors | floats).logits.numpy()


def exact_logits(
    drawn: Drawn, case: int, arrays: dict[str, np.ndarray], *, noise: float = 0, seed: int = 0
) -> np.ndarray:
    """transformers' logits in float64, of weights that are off by so much of themselves."""
    import torch

    twin = torch_model(drawn.content, case).double()
    if not drawn.content["text_config"].get("attn_logit_softcapping"):
        # The other implementation makes NaN of rows that see nothing.
        twin.set_attn_implementation("sdpa")
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in twin.parameters():
            weight.mul_(1 + noise * torch.randn_like(weight))
    return logits_of(twin, drawn, arrays)


def check_logits(ours: Model, theirs: Any, drawn: Drawn, case: int, side: str) -> None:
    arrays = drawn.arrays(side, theirs)
    inputs = models.prepare(ours, **arrays)
    mask = np.asarray(inputs.mask)
    expected = logits_of(theirs, drawn, arrays)[mask]
    got = np.asarray(models.forward(ours, inputs))[mask]
    assert np.abs(expected).max() > 0.5
    error = np.abs(got - expected).max()
    if not error < TOLERANCE:
        # Draws may be ill-conditioned: weights rounded to float32 change logits, too.
        exact = exact_logits(drawn, case, arrays)[mask]
        off = [
            np.abs(exact_logits(drawn, case, arrays, noise=2**-24, seed=seed)[mask] - exact).max()
            for seed in range(4)
        ]
        allowed = max(TOLERANCE, 2 * np.abs(expected - exact).max(), 4 * max(off))
        assert np.abs(got - exact).max() < allowed, (
            f"logits differ by {error:.1e}, where rounding explains {allowed:.1e}; "
            f"padding on the {side}"
        )


def check_answers(ours: Model, drawn: Drawn, case: int, rng: random.Random) -> None:
    """Greedy tokens are equal; the first case and some others are answered in 1 bit, too."""
    import torch

    theirs = torch_model(drawn.content, case)  # dynamic RoPE remembers lengths
    arrays = drawn.arrays("left", theirs)
    with torch.no_grad():
        expected = theirs.generate(
            **{name: torch.tensor(value) for name, value in arrays.items()},
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[:, arrays["input_ids"].shape[1] :].numpy()
    inputs = models.prepare(ours, **drawn.arrays(rng.choice(("left", "right")), theirs))
    # Pictures coded by themselves are a shorter call, in which such a RoPE turns otherwise.
    one_call = ours.visual_depends_on_question or frequencies_grow(drawn.content["text_config"])
    times = ("prompt",) if one_call else ("prompt", "image")
    options: dict[str, Any] = {"stop_tokens": (), "quantize_at": rng.choice(times)}
    answer = models.generate(ours, inputs, quant="none", max_new_tokens=NEW_TOKENS, **options)
    np.testing.assert_array_equal(answer.tokens, expected)
    in_one_bit = rng.random() < 0.3
    if case == 0 or in_one_bit:
        answer = models.generate(ours, inputs, quant="vkq-1bit", max_new_tokens=2, **options)
        assert np.asarray(answer.lengths).tolist() == [2] * len(expected)
