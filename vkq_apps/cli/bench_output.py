"""Where the commands of `vkq bench` write rows, and how they show them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from vkq_apps.bench.commands import Output
from vkq_apps.bench.options import NO_MESH
from vkq_apps.files.results_file import ResultsFile, as_written
from vkq_apps.terminal.console import log, out, print_json
from vkq_apps.terminal.hosts import hosts_named, leave_results_to_first

__all__ = ["output_on_hosts", "say", "show"]


def say(text: str) -> None:
    """Shows progress."""
    log.print(text)


def output_on_hosts(
    mesh: list[str] | None, path: Path | None, *, resume: bool, seconds: float | None
) -> Output:
    """Where rows go: the first host writes and shows those of meshes that span several."""
    count, number = hosts_named() if mesh else (1, 0)
    if count > 1 and (resume or seconds is not None):
        raise ValueError(
            f"{'--resume' if resume else '--seconds'}: expected one host, got {count}, which have "
            "to measure the same rows"
        )
    if count > 1 and mesh and NO_MESH in mesh:
        raise ValueError(f"--mesh {NO_MESH}: expected one host, got {count}")
    if number:
        leave_results_to_first()
    return Output(None if number else path, resume=resume, seconds=seconds, say=say)


def show(results: ResultsFile, table: Callable[[dict[str, Any]], Table], json: bool) -> None:
    """Shows what was measured; a row that failed fails the command."""
    record = results.record()
    if json:
        print_json(record)
    else:
        with as_written(results.path, record["command"]):  # `--resume` keeps rows of the file
            shown = table(record)
        out.print(shown)
    if any(row["status"] == "failed" for row in results.rows):
        raise typer.Exit(1)
