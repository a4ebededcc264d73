"""`vkq demo` and `vkq generate`: an image, a question, the answer from a coded cache."""

import time
from collections.abc import Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Unpack

import typer
from rich.table import Table

import vkq_jax
from models import Clip, GenerateOptions
from models.attached_tables import find_codes
from models.calibration.folder import digest_of
from models.sharding.placing import place_tables
from vkq_apps.answering import Answer, ask
from vkq_apps.evals.checkpoint_digest import files_digest
from vkq_apps.terminal.arguments import (
    PRESETS,
    ImageOption,
    JsonOption,
    MaxNewTokensOption,
    MeshOption,
    ModelOption,
    NumFramesOption,
    PromptOption,
    QuantizeAtOption,
    QuantOption,
    TablesOption,
    TextBitsOption,
    VideoFpsOption,
    VideoOption,
    check_visuals,
    describe_images,
    load_and_prepare,
    say_if_uncalibrated,
)
from vkq_apps.terminal.codes_option import FORMS, parse_codes
from vkq_apps.terminal.compiling import compiling_for
from vkq_apps.terminal.console import log, out, print_json, stage
from vkq_apps.terminal.draws import (
    SeedOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    check_draws,
    draw_options,
)
from vkq_apps.terminal.hosts import check_mesh_of, on_all_hosts
from vkq_jax.byte_units import human_bytes
from vkq_jax.cache.text_bank import check_text_bits
from vkq_jax.settings.layer_settings import AnyQuant

__all__ = ["demo", "generate"]

DEMO_PICTURE = "demo.png"
DEMO_QUESTION = "what is the total?"
DEFAULT_PRESET = "vkq-1bit"


def demo(quant: QuantOption = DEFAULT_PRESET, json: JsonOption = False) -> None:
    """The embedded model reads a receipt, at full precision and from a 1-bit cache."""
    with resources.as_file(resources.files("vkq_apps.cli") / DEMO_PICTURE) as picture:
        record = _answer(
            "tiny",
            [picture],
            DEMO_QUESTION,
            max_new_tokens=16,
            name=quant,
            quant=parse_codes(quant),
            watched=not json,
        )
    del record["tokens_per_second"], record["text_kv_bytes"]
    _show(record, quant, json)


def generate(
    model: ModelOption,
    prompt: PromptOption,
    image: ImageOption = None,
    video: VideoOption = None,
    video_fps: VideoFpsOption = None,
    num_frames: NumFramesOption = None,
    quant: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"{PRESETS} {FORMS} By default that of --score-map, else {DEFAULT_PRESET}.",
        ),
    ] = None,
    max_new_tokens: MaxNewTokensOption = 64,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    quantize_at: QuantizeAtOption = "prompt",
    score_map: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Static score calibration, a file of `vkq calibrate-scores`."
        ),
    ] = None,
    tables: TablesOption = None,
    text_bits: TextBitsOption = None,
    compare: Annotated[bool, typer.Option(help="Also answer at full precision.")] = True,
    mesh: MeshOption = None,
    json: JsonOption = False,
) -> None:
    """Answers one question about the given images and clips."""
    clips = check_visuals(image, video, video_fps, num_frames)
    static = None if score_map is None else vkq_jax.load_score_map(score_map)
    given = None if tables is None else vkq_jax.load_tables(tables)
    name, settings = _choose_codes(quant, static)
    drawn = check_draws(temperature, top_k, top_p, seed)
    answer = _answer(
        model,
        image or [],
        prompt,
        clips=clips,
        num_frames=num_frames,
        max_new_tokens=max_new_tokens,
        name=name,
        watched=not json,
        compare=compare,
        mesh=mesh,
        draws=draw_options(drawn),
        quant=settings,
        quantize_at=quantize_at,
        score_map=static,
        tables=given,
        text_bits=check_text_bits(text_bits),
    )
    file = None if score_map is None else str(score_map)
    record = {"quant": name, "score_map": file, "sampling": drawn, **answer}
    record["video"] = describe_images(video or [])
    record |= {"tables": None if tables is None else str(tables), "text_bits": text_bits}
    _show(record, name, json)


def _choose_codes(quant: str | None, score_map: vkq_jax.ScoreMap | None) -> tuple[str, AnyQuant]:
    """Name and codes of the visual cache: a score map brings those it was calibrated with."""
    own = None if score_map is None else score_map.quant
    if quant is None and own is not None:
        names = (name for name, preset in vkq_jax.presets.items() if preset == own)
        return next(names, "the score map's own codes"), own
    name = DEFAULT_PRESET if quant is None else quant
    codes = parse_codes(name)
    if score_map is not None and not isinstance(codes, vkq_jax.PerLayer):
        # The layers of the other kind are known once the model is: `generate` checks them.
        score_map.check_codes(vkq_jax.resolve(codes))
    return name, codes


def _answer(
    source: str,
    images: list[Path],
    prompt: str,
    *,
    clips: Sequence[Clip] = (),
    num_frames: int | None = None,
    max_new_tokens: int,
    name: str,
    watched: bool,
    compare: bool = True,
    mesh: str | None = None,
    draws: GenerateOptions | None = None,
    **options: Unpack[GenerateOptions],
) -> dict[str, Any]:
    """Asks the model; returns the record of its answer.

    Args:
        source, mesh: as for `models.load`.
        images, prompt, clips, num_frames: as for `models.prepare`.
        max_new_tokens: most tokens of each answer.
        name: of the codes.
        watched: a person looks on, who is shown the answer while it grows and what is compiled.
        compare: also ask at full precision.
        draws: options of both answers.
        options: of the answer from the coded cache.
    """
    started = time.perf_counter()
    draws = draws or {}
    with on_all_hosts() as alike:
        check_mesh_of(source, mesh, batch=1)
        model, prompt, inputs = load_and_prepare(
            source,
            images,
            prompt,
            videos=clips,
            num_frames=num_frames,
            max_new_tokens=max_new_tokens,
            # The answer at full precision has its text in the model's dtype.
            text_bits=None if compare else options.get("text_bits"),
            mesh=mesh,
        )
        # Layers, heads and tables that the model does not have are refused before any answer.
        find_codes(model, options.get("quant"), options.get("tables"))
        alike |= {
            "weights": lambda: files_digest(model),
            "pictures and prompt": lambda: digest_of(inputs),
            "options": lambda: (max_new_tokens, compare, digest_of(draws, options)),
        }
    options["tables"] = place_tables(model.mesh, options.get("tables"))
    say_if_uncalibrated(model, name, options["tables"])
    exact: Answer | None = None
    compiling = partial(compiling_for, inputs) if watched else None
    if compare:
        with stage("answering at full precision", compiling):
            exact = ask(model, inputs, max_new_tokens=max_new_tokens, **{**draws, "quant": "none"})
    with stage(f"answering from a {name} cache", compiling) as show:
        coded = ask(
            model,
            inputs,
            max_new_tokens=max_new_tokens,
            on_text=show if watched else lambda text: None,
            **{**options, **draws},
        )
    if coded.slowdown_reason:
        log.print(f"warning: {coded.slowdown_reason}", soft_wrap=True)
    return {
        "image": describe_images(images),
        "prompt": prompt,
        "answer": coded.text,
        "answer_full_precision": None if exact is None else exact.text,
        "visual_tokens": coded.visual_tokens,
        "visual_kv_bytes": coded.nbytes.visual,
        "visual_kv_bytes_full_precision": coded.nbytes.visual_full_precision,
        "text_kv_bytes": coded.nbytes.text,
        "visual_kv_reduction": round(coded.nbytes.visual_reduction, 4),
        "seconds": round(time.perf_counter() - started, 2),
        "tokens_per_second": coded.tokens_per_second,
    }


def _show(record: dict[str, Any], quant: str, json: bool) -> None:
    if json:
        print_json(record)
        return
    table = Table(title=f"{record['visual_tokens']} visual tokens: {record['prompt']!r}")
    for column in ("visual cache", "answer", "visual KV"):
        table.add_column(column)
    table.add_row(
        "full precision",
        _shown(record["answer_full_precision"]),
        human_bytes(record["visual_kv_bytes_full_precision"]),
    )
    table.add_row(
        quant,
        _shown(record["answer"]),
        f"{human_bytes(record['visual_kv_bytes'])} (-{record['visual_kv_reduction']:.1%})",
    )
    out.print(table)
    rate = record.get("tokens_per_second")
    speed = f", {rate:.1f} tokens/s once compiled" if rate else ""
    log.print(f"{record['seconds']} s in all{speed}")


def _shown(answer: str | None) -> str:
    """An answer in the table, where an empty one must not look like one that nobody asked for."""
    return "(not asked)" if answer is None else answer or "(empty)"
