"""`vkq calibrate-scores`: a static score map from sample pictures and prompts."""

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import models
import vkq_jax
from models import Inputs, Model
from vkq_apps.files.outputs import check_stored_place
from vkq_apps.terminal.arguments import (
    JsonOption,
    MaxNewTokensOption,
    ModelOption,
    NumFramesOption,
    QuantizeAtOption,
    QuantOption,
    VideoFpsOption,
    VideoOption,
    check_before_loading,
    check_visuals,
    load_model,
)
from vkq_apps.terminal.codes_option import parse_codes
from vkq_apps.terminal.console import log, out, print_json
from vkq_apps.terminal.progress import progress
from vkq_apps.terminal.room import check_room
from vkq_apps.terminal.sample_prompts import BatchSizeOption, batches_of
from vkq_jax.settings.layer_settings import AnyQuant

__all__ = ["calibrate_scores"]


def calibrate_scores(
    model: ModelOption,
    prompt: Annotated[
        list[str],
        typer.Option(metavar="TEXT", help="Sample question, or prompt; repeat for several."),
    ],
    out_file: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="safetensors file to write.")
    ],
    image: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Sample picture; repeat for several.")
    ] = None,
    video: VideoOption = None,
    video_fps: VideoFpsOption = None,
    num_frames: NumFramesOption = None,
    quant: QuantOption = "calibquant-1bit",
    quantize_at: QuantizeAtOption = "prompt",
    max_new_tokens: MaxNewTokensOption = 16,
    batch_size: BatchSizeOption = 8,
    json: JsonOption = False,
) -> None:
    """Calibrates visual scores once, asking each question about each picture and clip."""
    started = time.perf_counter()
    clips = check_visuals(image, video, video_fps, num_frames)
    codes = parse_codes(quant)
    named = codes.named if isinstance(codes, vkq_jax.PerLayer) else (codes,)
    calibrations = {vkq_jax.resolve(own).calibration for own in named} - {None}
    if not calibrations:
        known = ", ".join(name for name, preset in vkq_jax.presets.items() if preset.calibration)
        raise ValueError(
            f"--quant: expected a preset that calibrates scores ({known}), got {quant!r}"
        )
    check_stored_place(out_file, "score map", "vkq calibrate-scores")
    check_before_loading(
        model,
        image or [],
        prompt,
        clips=clips,
        per_prompt=1 if image else 0,
        max_new_tokens=max_new_tokens,
    )
    loaded = load_model(model)
    pairs = list(itertools.product([*(image or []), *clips], prompt))
    with progress(log, "prompts") as show:

        def batches() -> Iterator[Inputs]:
            for inputs in batches_of(loaded, pairs, batch_size, num_frames=num_frames):
                shape = inputs.prompt_shape
                check_room(
                    loaded.config,
                    visual=shape.visual,
                    text=shape.text,
                    max_new_tokens=max_new_tokens,
                )
                yield inputs
                show("calibrating", len(inputs.mask), len(pairs))

        score_map = models.calibrate_scores(
            loaded,
            batches(),
            quant=codes,
            max_new_tokens=max_new_tokens,
            quantize_at=quantize_at,
        )
    vkq_jax.save_score_map(out_file, score_map)
    slope = np.asarray(score_map.slope)
    layers, heads = slope.shape
    record = {
        "model": model,
        "quant": quant,
        "quantize_at": quantize_at,
        "sample_prompts": len(pairs),
        "layers": layers,
        "query_heads": heads,
        "heads_left_alone": int((slope == 1).sum()),
        "mean_slope": round(float(slope.mean()), 4),
        "file": str(out_file),
        "seconds": round(time.perf_counter() - started, 2),
    }
    if json:
        print_json(record)
        return
    spans = sorted({one.tau2 - one.tau1 for one in calibrations if one is not None})
    out.print(_sentence(record, loaded, codes, spans), soft_wrap=True)


def _sentence(record: dict[str, Any], model: Model, codes: AnyQuant, spans: Sequence[float]) -> str:
    """A sentence on the map and on heads whose scores it leaves; `spans` are tau2 - tau1."""
    heads = f"{record['layers']} x {record['query_heads']} heads"
    text = f"{record['file']}: {heads} from {record['sample_prompts']} sample prompts, "
    text += f"mean slope {record['mean_slope']:.2f}"
    if not record["heads_left_alone"]:
        return text
    text += (
        f"; {record['heads_left_alone']} of {heads} kept the identity: their scores span less than "
        f"tau2 - tau1 = {' or '.join(f'{span:g}' for span in spans)}"
    )
    if isinstance(codes, vkq_jax.PerLayer):
        text += ", or their settings calibrate no scores"
    if model.config.text.sliding_window is not None:
        text += ", or their sliding window hides the pictures"
    return text
