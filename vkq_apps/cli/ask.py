"""`vkq demo` and `vkq generate`: an image, a question, the answer from a coded cache."""

import time
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import vkq_jax
from models.generate import QuantizeAt
from vkq_apps.answering import Answer, ask
from vkq_apps.cli.arguments import (
    JsonOption,
    QuantizeAtOption,
    QuantOption,
    ScoreMapOption,
    describe_images,
    load_and_prepare,
)
from vkq_apps.cli.console import human_bytes, log, out, print_json, stage

__all__ = ["demo", "generate"]

DEMO_PICTURE = "demo.png"
DEMO_QUESTION = "what is the total?"


def demo(quant: QuantOption = "vkq-1bit", json: JsonOption = False) -> None:
    """The embedded model reads a receipt, at full precision and from a 1-bit cache."""
    with resources.as_file(resources.files("vkq_apps.cli") / DEMO_PICTURE) as picture:
        record = _answer("tiny", [picture], DEMO_QUESTION, quant, 16, "prompt", None, True, json)
    del record["tokens_per_second"]
    _show(record, quant, json)


def generate(
    model: Annotated[str, typer.Option(help='Hugging Face checkpoint folder, or "tiny".')],
    image: Annotated[list[Path], typer.Option(help="Picture file; repeat for several.")],
    prompt: Annotated[str, typer.Option(help="Question, or a whole prompt with <image> in it.")],
    quant: QuantOption = "vkq-1bit",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to emit.")] = 64,
    quantize_at: QuantizeAtOption = "prompt",
    score_map: ScoreMapOption = None,
    compare: Annotated[bool, typer.Option(help="Also answer at full precision.")] = True,
    json: JsonOption = False,
) -> None:
    """Answers one question about the given images."""
    answer = _answer(
        model, image, prompt, quant, max_new_tokens, quantize_at, score_map, compare, json
    )
    file = None if score_map is None else str(score_map)
    record = {"quant": quant, "score_map": file, **answer}
    _show(record, quant, json)


def _answer(
    source: str,
    images: list[Path],
    prompt: str,
    quant: str,
    max_new_tokens: int,
    quantize_at: QuantizeAt,
    score_map: Path | None,
    compare: bool,
    quiet: bool,
) -> dict[str, Any]:
    started = time.perf_counter()
    settings = vkq_jax.resolve(quant)
    static = None
    if score_map is not None:
        static = vkq_jax.load_score_map(score_map)
        static.check_codes(settings)
    model, prompt, inputs = load_and_prepare(source, images, prompt)
    exact: Answer | None = None
    if compare:
        with stage("answering at full precision"):
            exact = ask(model, inputs, quant="none", max_new_tokens=max_new_tokens)
    with stage(f"answering from a {quant} cache") as show:
        coded = ask(
            model,
            inputs,
            quant=settings,
            max_new_tokens=max_new_tokens,
            quantize_at=quantize_at,
            score_map=static,
            on_text=show if not quiet else lambda text: None,
        )
    return {
        "image": describe_images(images),
        "prompt": prompt,
        "answer": coded.text,
        "answer_full_precision": None if exact is None else exact.text,
        "visual_tokens": coded.visual_tokens,
        "visual_kv_bytes": coded.nbytes.visual,
        "visual_kv_bytes_full_precision": coded.nbytes.visual_full_precision,
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
        record["answer_full_precision"] or "(not asked)",
        human_bytes(record["visual_kv_bytes_full_precision"]),
    )
    table.add_row(
        quant,
        record["answer"],
        f"{human_bytes(record['visual_kv_bytes'])} (-{record['visual_kv_reduction']:.1%})",
    )
    out.print(table)
    rate = record.get("tokens_per_second")
    speed = f", {rate:.1f} tokens/s once compiled" if rate else ""
    log.print(f"{record['seconds']} s in all{speed}")
