"""`vkq inspect`: plots of one prompt's visual keys and values, before and after coding."""

import json as jsonlib
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from rich.table import Table

from models import Clip, Inputs, Model, Sampling
from models.attached_tables import find_codes
from models.families.registry import family_of
from models.inputs.clips import read_clip
from models.inputs.images import read_picture
from models.prompts.processor import processor_of
from models.vision.vit import VitConfig
from vkq_apps.answering import ask
from vkq_apps.inspection.layout import Segment, read_layout
from vkq_apps.inspection.measure import Inspection, inspect_visual
from vkq_apps.inspection.output_folder import (
    SUMMARY,
    WRITTEN_BY,
    check_replaceable,
    complete_or_nothing,
)
from vkq_apps.inspection.pictures import seen_pictures
from vkq_apps.inspection.report import REPORT, write_report
from vkq_apps.inspection.summary import raw_arrays, summarize
from vkq_apps.terminal.arguments import (
    ImageOption,
    JsonOption,
    MaxNewTokensOption,
    ModelOption,
    NumFramesOption,
    PromptOption,
    QuantOption,
    VideoFpsOption,
    VideoOption,
    check_visuals,
    describe_images,
    load_and_prepare,
)
from vkq_apps.terminal.codes_option import parse_codes
from vkq_apps.terminal.compiling import compiling_for
from vkq_apps.terminal.console import log, out, print_json, stage
from vkq_jax.byte_units import human_bytes

__all__ = ["inspect"]

ARRAYS = "arrays.npz"
_PAGE_SIDE = 512  # pixels of a picture on the page
_FRAMES_SHOWN = 4  # of each clip


def inspect(
    model: ModelOption,
    prompt: PromptOption,
    out_folder: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Folder for plots and figures.")
    ],
    image: ImageOption = None,
    video: VideoOption = None,
    video_fps: VideoFpsOption = None,
    num_frames: NumFramesOption = None,
    quant: QuantOption = "vkq-1bit",
    max_new_tokens: MaxNewTokensOption = 32,
    json: JsonOption = False,
) -> None:
    """Plots channel ranges, errors, attention before and after coding, and bits of each token.

    report.html in the folder shows all plots on one page, with the pictures, some frames of each
    clip, and both answers. Maps over a picture are drawn where each visual token is one patch of
    it.
    """
    started = time.perf_counter()
    clips = check_visuals(image, video, video_fps, num_frames)
    asked = parse_codes(quant)  # before anything is loaded
    check_replaceable(out_folder)
    loaded, prompt, inputs = load_and_prepare(
        model,
        image or [],
        prompt,
        videos=clips,
        num_frames=num_frames,
        max_new_tokens=max_new_tokens,
    )
    codes, tables = find_codes(loaded, asked)
    quantize_at = "prompt" if loaded.visual_depends_on_question else "image"
    compiling = None if json else partial(compiling_for, inputs)
    with stage("answering at full precision and from the codes", compiling):
        answers = {
            name: ask(
                loaded,
                inputs,
                max_new_tokens=max_new_tokens,
                chunk=max_new_tokens,
                quant=own,
                quantize_at=quantize_at,
                sampling=Sampling(temperature=0.0),
            ).text
            for name, own in {"none": "none", quant: asked}.items()
        }
    with stage(f"measuring at full precision and with {quant}", compiling):
        kinds = inspect_visual(loaded, inputs, codes, tables)
        segments = _segments(loaded, inputs)
        record = {
            "written_by": WRITTEN_BY,
            "model": model,
            "image": describe_images(image or []),
            "video": describe_images(video or []),
            "prompt": prompt,
            "quant": quant,
            "quantize_at": quantize_at,
            "answer": answers[quant],
            "answer_full_precision": answers["none"],
            **summarize(kinds, segments),
        }
    vision = None if clips else _tower(loaded)
    pictures = [_for_page(read_picture(file)) for file in image or []]
    pictures += [_for_page(frame) for clip in clips for frame in _some_frames(clip)]
    if vision is not None:
        pictures = list(_seen_pictures(loaded, inputs, vision))
    with stage("plotting"), complete_or_nothing(out_folder) as folder:
        _write(folder, record, kinds, segments, pictures, vision, started)
    if json:
        print_json(record)
    else:
        _show(record)
        if record["key_bias_kept_out"]:
            log.print("keys are without their projection's bias, which the cache keeps exactly")
        log.print(f"{out_folder}: {', '.join(record['files'])}", soft_wrap=True)
        log.print(f"{record['seconds']} s; {REPORT} shows all plots on one page")


def _write(
    folder: Path,
    record: dict[str, Any],
    kinds: Sequence[Inspection],
    segments: Sequence[Segment],
    pictures: Sequence[np.ndarray],
    vision: VitConfig | None,
    started: float,
) -> None:
    """Writes plots, arrays, page and summary; the record gets their names and the seconds."""
    # Here and not above, because this import takes a second.
    from vkq_apps.inspection.plots.write import write_plots

    plots = write_plots(
        folder,
        quant=record["quant"],
        kinds=kinds,
        segments=segments,
        pictures=pictures,
        vision=vision,
    )
    arrays = raw_arrays(kinds)  # none of them is called allow_pickle
    np.savez_compressed(folder / ARRAYS, **arrays)  # type: ignore[arg-type]
    record["files"] = [REPORT, SUMMARY, ARRAYS, *plots]
    bits = float(np.concatenate([kind.bits for kind in kinds]).mean())
    write_report(folder, record, pictures, plots, bits=bits)
    record["seconds"] = round(time.perf_counter() - started, 2)
    text = jsonlib.dumps(record, indent=1, ensure_ascii=False) + "\n"
    # The bytes of a file name that are no UTF-8 become JSON's escapes.
    (folder / SUMMARY).write_text(text, encoding="utf-8", errors="backslashreplace")


def _segments(model: Model, inputs: Inputs) -> list[Segment]:
    (ids,), (mask,) = np.asarray(inputs.input_ids), np.asarray(inputs.mask)
    tokenizer = processor_of(model).tokenizer
    return read_layout(
        ids[mask],
        model.config.visual_token_ids,
        lambda tokens: [tokenizer.decode([token]) for token in tokens],
    )


def _seen_pictures(model: Model, inputs: Inputs, vision: VitConfig) -> np.ndarray:
    processor = processor_of(model).image_processor
    mean, std = processor.image_mean, processor.image_std
    if not processor.do_normalize:
        mean, std = (0.0,) * 3, (1.0,) * 3
    return seen_pictures(np.asarray(inputs.pixel_values), np.asarray(mean), np.asarray(std), vision)


def _for_page(picture: Image.Image) -> np.ndarray:
    """A picture as it is in its file, small enough for a page."""
    picture.thumbnail((_PAGE_SIDE, _PAGE_SIDE))
    return np.asarray(picture)


def _some_frames(clip: Clip) -> list[Image.Image]:
    """A few frames from the first to the last."""

    def choose(total: int, fps: float | None) -> list[int]:
        return np.linspace(0, total - 1, min(total, _FRAMES_SHOWN)).round().astype(int).tolist()

    return read_clip(clip, choose).frames


def _tower(model: Model) -> VitConfig | None:
    """The vision tower's settings, which tell where in a picture each visual token lies.

    None where a visual token is not one patch.
    """
    config = model.config
    vision = getattr(config, "vision", None)
    features = family_of(config.model_type).features_per_image(config)
    # One visual token a patch, apart from a class token in front.
    if (
        not isinstance(vision, VitConfig)
        or features != vision.num_features
        or vision.num_features < vision.num_patches
    ):
        return None
    return vision


def _show(record: dict[str, Any]) -> None:
    table = Table(
        title=f"{record['visual_tokens']} visual tokens, {record['quant']}: "
        f"{human_bytes(record['visual_kv_bytes'])} for "
        f"{human_bytes(record['visual_kv_bytes_full_precision'])} "
        f"(-{record['visual_kv_reduction']:.1%})",
        caption="Rows of layers: means over heads. Errors are relative and squared; attention is "
        "that of the last prompt token.",
    )
    columns = {
        "layer": None,
        "key error": "key_error",
        "value error": "value_error",
        "output error": "output_error",
        "on image: exact": "visual_mass_full_precision",
        "coded": "visual_mass",
        "moved": "moved",
    }
    shares = ("visual_mass_full_precision", "visual_mass", "moved")
    for heading in columns:
        table.add_column(heading, justify="right")

    def cells(values: dict[str, Any]) -> list[str]:
        means = {name: float(np.mean(values[name])) for name in columns.values() if name}
        return [f"{x:.1%}" if name in shares else f"{x:.3f}" for name, x in means.items()]

    for layer in record["layers"]:
        table.add_row(str(layer["layer"]), *cells(layer))
    table.add_section()
    table.add_row("mean", *cells(record["mean"]))
    table.add_row("median", *cells(record["median"]))
    out.print(table)
