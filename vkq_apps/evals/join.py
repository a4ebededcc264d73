"""Results of several evaluations as one: the same questions, other presets in each.

    python -m vkq_apps.evals.join --out results.json first.json second.json ...

So the presets of one table can be asked beside each other, by a `vkq eval` each on a device each.
Questions, weights, options, kind of device and versions are the same in all files, and full
precision has the same figures.
"""

if __name__ == "__main__":  # here: Ctrl-C is heard in the imports below, too
    from vkq_apps.terminal.program import run_module

    run_module("vkq_apps.evals.join")

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vkq_apps.evals.finished import check_marks, read_results
from vkq_apps.evals.settings import NONE
from vkq_apps.evals.table import results_tables
from vkq_apps.files.outputs import check_record_place
from vkq_apps.files.results_file import write_json
from vkq_apps.terminal.console import out
from vkq_apps.terminal.standalone import argument, option, run_standalone

__all__ = ["join", "main"]


@dataclasses.dataclass(frozen=True)
class JoinOptions:
    """The command line."""

    files: list[Path] = argument(help="Results of `vkq eval`; rows keep the order of the files.")
    out: Path = option(help="JSON file to write.", metavar="FILE")


def join(files: Sequence[Path]) -> dict[str, Any]:
    """One record with the rows of all files, in their order.

    Args:
        files: of results; the first one gives what is said about the run.

    Raises:
        ValueError: a file holds no results, those of other settings, of other figures at full
            precision, or a preset that an earlier file has.
    """
    first, *others = files
    record = read_results(first)
    for file in others:
        more = read_results(file)
        check_marks(more["marks"], record["marks"], file)
        if more["versions"] != record["versions"]:
            raise ValueError(
                f"{file}: expected the versions of {first}, {record['versions']}, got "
                f"{more['versions']}"
            )
        if more["presets"][NONE]["tasks"] != record["presets"][NONE]["tasks"]:
            raise ValueError(
                f"{file}: full precision has other figures than in {first}, so what presets lose "
                "against it cannot stand side by side; ask all on the same kind of device"
            )
        if twice := [n for n in more["presets"] if n != NONE and n in record["presets"]]:
            raise ValueError(f"{file}: expected presets that no earlier file has, got {twice[0]!r}")
        record["presets"] = record["presets"] | {
            name: row for name, row in more["presets"].items() if name != NONE
        }
        record["marks"]["codes"] = record["marks"]["codes"] | more["marks"]["codes"]
        record["offline_table_bytes"] |= more["offline_table_bytes"]
        record["seconds"] = round(record["seconds"] + more["seconds"], 1)
    return record | {"quant": list(record["presets"]), "joined": len(files)}


def run(options: JoinOptions) -> None:
    """Joins, writes the file and shows it."""
    check_record_place(options.out, "vkq eval")
    record = join(options.files)
    write_json(options.out, record)
    for table in results_tables(record):
        out.print(table)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for bad input."""
    module = "vkq_apps.evals.join"
    return run_standalone(JoinOptions, run, module=module, help=__doc__, arguments=arguments)
