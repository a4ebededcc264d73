"""`vkq bench throughput` and `vkq bench prefill`: whole models of random weights."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from pallas_kernels.shapes import SHAPES
from vkq_apps.bench import tables
from vkq_apps.bench.codes import BASELINE
from vkq_apps.bench.commands import run_prefill, run_throughput
from vkq_apps.bench.options import (
    Baselines,
    Implementations,
    Meshes,
    Out,
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
from vkq_apps.bench.prefilling import PrefillSetup
from vkq_apps.bench.throughput import TRANSFORMERS, ThroughputSetup
from vkq_apps.bench.throughput_plan import plan_throughput
from vkq_apps.cli.bench_output import output_on_hosts, show
from vkq_apps.files.outputs import check_record_place
from vkq_apps.files.results_file import as_written, join_files, write_json
from vkq_apps.terminal.arguments import JsonOption
from vkq_apps.terminal.console import out, print_json
from vkq_apps.terminal.counts import check_count
from vkq_apps.terminal.implementation import implementation_of
from vkq_apps.terminal.lists import names, numbers

__all__ = ["REAL_SHAPES", "join", "prefill", "throughput"]

REAL_SHAPES = ",".join(name for name in SHAPES if name != "tiny")


def throughput(
    shape: Shapes = REAL_SHAPES,
    budget: Annotated[
        str, typer.Option(metavar="GB", help="GB of KV cache a device, comma-separated.")
    ] = "5,10,30",
    preset: Presets = "vkq-1bit,vkq-half",
    implementation: Implementations = "auto",
    baseline: Baselines = "auto",
    text_capacity: TextCapacity = 64,
    prompt_text: PromptText = 32,
    sequences: Sequences = None,
    steps: Annotated[
        str, typer.Option(metavar="N,N", help="Steps of the two runs whose difference counts.")
    ] = "4,20",
    round_to: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            callback=check_count,
            help="Also try the largest batch, rounded down to a multiple of this; 0: do not.",
        ),
    ] = 64,
    compare_steps: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            callback=check_count,
            help="Greedy tokens to compare with xla; 0: none.",
        ),
    ] = 8,
    mesh: Meshes = None,
    repeats: Repeats = 3,
    seconds: Seconds = None,
    resume: Resume = False,
    results: Out = None,
    json: JsonOption = False,
) -> None:
    """Generation at real shapes and random weights: bf16 and coded, in a budget of GB.

    Steps of the decode loop, from a cache of random tokens; prefill has a command of its own.
    """
    short, long = numbers("--steps", steps, int, count=2)
    groups = plan_throughput(
        names("--shape", shape),
        numbers("--budget", budget, float),
        [name for name in names("--quant", preset) if name != "none"],
        [implementation_of(name) for name in names("--implementation", implementation)],
        [
            name if name == TRANSFORMERS else implementation_of(name)
            for name in names("--baseline", baseline)
        ],
        compare_steps=compare_steps,
        meshes=meshes_of(mesh),
        round_to=round_to,
        text_capacity=text_capacity,
        prompt_text=prompt_text,
        sequences=sequences,
        short_steps=short,
        long_steps=long,
        repeats=repeats,
    )
    output = output_on_hosts(mesh, results, resume=resume, seconds=seconds)
    show(run_throughput(groups, output), tables.throughput_table, json)


def prefill(
    shape: Shapes = REAL_SHAPES,
    preset: Presets = "vkq-1bit,vkq-1bit-tables,vkq-half",
    implementation: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Implementation of attention that codes are laid out for."
        ),
    ] = "auto",
    text_capacity: TextCapacity = 64,
    prompt_text: PromptText = 32,
    sequences: Sequences = None,
    mesh: Meshes = None,
    repeats: Repeats = 5,
    seconds: Seconds = None,
    resume: Resume = False,
    results: Out = None,
    json: JsonOption = False,
) -> None:
    """Prefill of whole prompts, bf16 and coded: time, compile time, memory."""
    groups = [
        [
            PrefillSetup(
                shape=name,
                preset=codes,
                implementation=implementation_of(implementation),
                text_capacity=text_capacity,
                prompt_text=prompt_text,
                sequences=sequences,
                repeats=repeats,
                mesh=devices,
            )
            for codes in dict.fromkeys([BASELINE, *names("--quant", preset)])
        ]
        for name in names("--shape", shape)
        for devices in meshes_of(mesh)
    ]
    output = output_on_hosts(mesh, results, resume=resume, seconds=seconds)
    show(run_prefill(groups, output), tables.prefill_table, json)


def join(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Files of `vkq bench throughput`.")
    ],
    results: Annotated[Path, typer.Option("--out", metavar="FILE", help="JSON file to write.")],
    json: JsonOption = False,
) -> None:
    """Rows of several files of `vkq bench throughput`, from one kind of device, in one file."""
    command = "vkq bench throughput"
    check_record_place(results, command)
    settings = [field.name for field in dataclasses.fields(ThroughputSetup)]
    record = join_files(files, command, settings)
    with as_written(files[0], command):  # or a later one: before anything is written
        table = tables.throughput_table(record)
    write_json(results, record)
    if json:
        print_json(record)
    else:
        out.print(table)
