"""`vkq bench`: speed and memory, each row with the device it was measured on and its error."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from pallas_kernels.shapes import SHAPES
from vkq_apps.bench import tables
from vkq_apps.bench.baselines import BASELINES
from vkq_apps.bench.cases import CASES
from vkq_apps.bench.codes import BASELINE
from vkq_apps.bench.commands import (
    Output,
    run_meshes,
    run_quantize,
    run_scaling,
)
from vkq_apps.bench.explain import explain_shape
from vkq_apps.bench.options import (
    Meshes,
    Out,
    Preset,
    Presets,
    PromptText,
    Repeats,
    Resume,
    Seconds,
    Sequences,
    Shapes,
    TextCapacity,
    meshes_of,
)
from vkq_apps.bench.quantize import plan_quantize
from vkq_apps.bench.scaling import plan_scaling
from vkq_apps.bench.throughput_plan import plan_meshes
from vkq_apps.cli.bench_generation import REAL_SHAPES, join, prefill, throughput
from vkq_apps.cli.bench_output import output_on_hosts, say, show
from vkq_apps.files.outputs import check_record_place
from vkq_apps.files.provenance import provenance
from vkq_apps.files.results_file import as_written, read_json, write_json
from vkq_apps.terminal.arguments import JsonOption
from vkq_apps.terminal.command_line import App
from vkq_apps.terminal.console import out, print_json
from vkq_apps.terminal.counts import check_count
from vkq_apps.terminal.implementation import implementation_of
from vkq_apps.terminal.lists import names, numbers
from vkq_jax.byte_units import human_bytes

__all__ = ["bench"]

bench = App(help="Speed and memory: attention, coding, whole generation.")

BATCHES = "1,4,16,64,256,1024"
LENGTHS = ",".join(str(1024 * 2**i) for i in range(8))


bench.command()(throughput)
bench.command()(join)
bench.command()(prefill)


@bench.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@bench.command()
def kernel(
    cases: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help=f"Shapes to time, comma-separated: {', '.join(CASES)}.",
            show_default="all",
        ),
    ] = ",".join(CASES),
    baselines: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help=f"Other attention to time, comma-separated: {', '.join(BASELINES)}; or none.",
            show_default="all",
        ),
    ] = ",".join(BASELINES),
    check: Annotated[bool, typer.Option("--check", help="Only check small cases.")] = False,
    emulate: Annotated[bool, typer.Option("--emulate", help="Check without a GPU.")] = False,
    tuning: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N,N,N,N", help="Also try these warps, team, splits, queries; repeatable."
        ),
    ] = None,
    results: Out = None,
    json: JsonOption = False,
) -> None:
    """The fused kernel against other attention over the same positions."""
    # Here and not above: this import builds kernels, which other commands do not need.
    from vkq_apps.bench import kernel as fused

    if emulate and not check:
        raise ValueError("--emulate needs --check: without a GPU there are no times to take")
    if check and (tuning or results is not None):
        raise ValueError(
            "--check writes no file and has cases of its own: leave out --out, --tuning"
        )
    chosen = names("--cases", cases, CASES)
    others = [] if baselines == "none" else names("--baselines", baselines, BASELINES)
    tunings = [fused.read_tuning(text) for text in tuning or ()]
    with contextlib.redirect_stdout(sys.stderr if json else sys.stdout):
        if check:
            raise typer.Exit(0 if fused.check_without_times(emulate) else 1)
        record = fused.measure_cases(chosen, others, tunings, results)
    if json:
        print_json(record)
    if record["failed"]:
        raise typer.Exit(1)


@bench.command()
def quantize(
    shape: Shapes = REAL_SHAPES,
    preset: Presets = "signs-1bit,quantile-1bit",
    prompt_text: PromptText = 32,
    sequences: Sequences = None,
    repeats: Repeats = 7,
    seconds: Seconds = None,
    resume: Resume = False,
    results: Out = None,
    json: JsonOption = False,
) -> None:
    """Coding a layer's keys and values beside the prefill of that layer."""
    setups = plan_quantize(
        names("--shape", shape),
        names("--quant", preset),
        prompt_text=prompt_text,
        sequences=sequences,
        repeats=repeats,
    )
    output = Output(results, resume=resume, seconds=seconds, say=say)
    show(run_quantize(setups, output), tables.quantize_table, json)


@bench.command()
def scaling(
    shape: Annotated[
        str, typer.Option(metavar="NAME", help="The shape whose heads are taken.")
    ] = "internvl2.5-8b",
    length: Annotated[
        str,
        typer.Option(
            metavar="NS",
            help="Visual tokens, comma-separated.",
            show_default="1024 to 131072, doubled",
        ),
    ] = LENGTHS,
    batch: Annotated[
        str,
        typer.Option(
            metavar="NS",
            help="Sequences, comma-separated.",
            show_default=f"{BATCHES}; 16 with --mesh",
        ),
    ] = BATCHES,
    preset: Preset = "signs-1bit",
    implementation: Annotated[
        str, typer.Option(metavar="NAME", help="Implementation of attention over codes.")
    ] = "auto",
    baseline: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Implementation for bf16; with --mesh, none leaves bf16 out."
        ),
    ] = "auto",
    mesh: Meshes = None,
    weak: Annotated[
        bool,
        typer.Option(
            "--weak-scaling",
            help="With --mesh: sequences of --batch for each part of data, not for all together.",
        ),
    ] = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="With --mesh, on GPUs: where a step's time goes, by groups of kernels.",
        ),
    ] = False,
    repeats: Repeats = 5,
    seconds: Seconds = None,
    resume: Resume = False,
    results: Out = None,
    json: JsonOption = False,
) -> None:
    """One decode attention against length and batch; a plot beside the file.

    With --mesh whole decode steps against the number of devices instead, with the shape's own
    visual tokens: tokens/s, bytes on each device, bytes that it sends.
    """
    if mesh:
        if length != LENGTHS:
            raise ValueError("--length: with --mesh prompts have the visual tokens of their shape")
        batches = [16] if batch == BATCHES else numbers("--batch", batch, int)
        sides = [(BASELINE, baseline), (preset, implementation)][baseline == "none" :]
        setups = plan_meshes(
            shape,
            meshes_of(mesh),
            batches,
            [(name, implementation_of(by)) for name, by in sides],
            repeats,
            weak=weak,
            profile=profile,
        )
        output = output_on_hosts(mesh, results, resume=resume, seconds=seconds)
        show(run_meshes(setups, output), tables.mesh_table, json)
        return
    if weak:
        raise ValueError("--weak-scaling: expected --mesh, whose data axis it is about")
    if profile:
        raise ValueError("--profile: expected --mesh, whose decode steps it is about")
    groups = plan_scaling(
        numbers("--length", length, int),
        numbers("--batch", batch, int),
        preset,
        implementation_of(implementation),
        implementation_of(baseline),
        shape=shape,
        repeats=repeats,
    )
    if results is not None:
        _plot_of(results)
    output = Output(results, resume=resume, seconds=seconds, say=say)
    measured = run_scaling(groups, output)
    if results is not None:
        try:
            plot(results)
        except ImportError as error:  # a machine that only measures
            say(f"no plot: {error}; `vkq bench plot {results}` draws it elsewhere")
    show(measured, tables.scaling_table, json)


@bench.command()
def plot(
    results: Annotated[
        Path, typer.Argument(metavar="FILE", help="File that `vkq bench scaling` wrote.")
    ],
) -> None:
    """Draws the plot of a scaling file, a PNG beside it."""
    # Here and not above, because this import takes a second.
    from vkq_apps.bench.scaling_plot import plot_scaling

    record = read_json(results, "vkq bench scaling")
    title = f"Decode attention on {record.get('device')}, heads of {record.get('shape')}"
    rows = [row for row in record["rows"] if row.get("shape") == record.get("shape")]
    target = _plot_of(results)
    with as_written(results, "vkq bench scaling"):
        plot_scaling(target, rows, title)


def _plot_of(results: Path) -> Path:
    """The plot beside a file of results; raises ValueError where both have one name."""
    plot = results.with_suffix(".png")
    if plot == results:
        raise ValueError(f"{results}: expected another ending, .png is that of the plot beside it")
    return plot


@bench.command()
def explain(
    shape: Annotated[str, typer.Option(metavar="NAME", help=f"One of {', '.join(SHAPES)}.")],
    batch: Annotated[
        int, typer.Option(min=1, metavar="N", callback=check_count, help="Number of sequences.")
    ] = 1,
    preset: Preset = "signs-1bit",
    queries_per_step: Annotated[
        int,
        typer.Option(min=1, metavar="N", callback=check_count, help="Query tokens a step."),
    ] = 1,
    text_capacity: TextCapacity = 64,
    results: Out = None,
    json: JsonOption = False,
) -> None:
    """Which implementations, of attention and coding, a shape takes on this device, and why."""
    command = "vkq bench explain"
    if results is not None:
        check_record_place(results, command)
    record = {
        "command": command,
        **provenance(),
        **explain_shape(shape, batch, preset, queries_per_step, text_capacity),
    }
    write_json(results, record)
    if json:
        print_json(record)
        return
    size = human_bytes(record["bytes_per_sequence"]["total"])
    out.print(
        f"{shape}, {preset}, on {record['device']}: queries {record['query']}, cache {size} a "
        "sequence"
    )
    for line in record["explanation"]:
        out.print(f"  {line}")
    for line in record["coding_explanation"]:
        out.print(f"  coding, {line}")
