"""Measuring row after row: groups that are compared, a limit of time, and no silent gap."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from vkq_apps.bench.device_memory import DoesNotFit
from vkq_apps.files.results_file import ResultsFile
from vkq_apps.terminal.errors import describe, is_out_of_memory

__all__ = ["Setup", "attempt", "run_groups"]

Row = dict[str, Any]


class Setup(Protocol):
    """Settings of one row: a frozen dataclass of plain values."""

    __dataclass_fields__: Any

    @property
    def key(self) -> dict[str, Any]:
        """The settings that tell this row from others."""
        ...

    def __str__(self) -> str: ...


def attempt(measure: Callable[[Row], None], row: Row) -> Row:
    """Lets `measure` fill the row; what hinders it becomes the row's status and message."""
    try:
        measure(row)
        row.setdefault("status", "measured")
    except NotImplementedError as error:
        row |= {"status": "not supported", "message": str(error)}
    except DoesNotFit as error:
        row |= {"status": "does not fit", "message": str(error)}
    except Exception as error:
        status = "out of memory" if is_out_of_memory(error) else "failed"
        row |= {"status": status, "message": describe(error)}
    return row


def run_groups(
    groups: Sequence[Sequence[Any]],
    measure: Callable[[Any], Row],
    results: ResultsFile,
    *,
    compare: Callable[[Row, Sequence[Row]], None],
    say: Callable[[str], None],
    seconds: float | None = None,
) -> None:
    """Measures all rows that the file does not hold yet; each is written at once.

    Rows of a group are compared with each other, so a group of which a row is missing is measured
    anew as a whole: ratios never span two runs.

    Args:
        groups: of `Setup`s.
        measure: a row from a setup; catches what hinders it, see `attempt`.
        results: where rows go. Rows that were left out for lack of time are listed in its head,
            "left_out".
        compare: adds to a row what the rows of its group, measured so far, tell.
        say: shows progress.
        seconds: no row is begun that would, at the pace of the slowest one, end later.
    """
    start, longest = time.perf_counter(), 0.0
    left_out: list[str] = []
    total = sum(map(len, groups))
    done = 0
    if results.dropped:
        say(f"{results.dropped} rows of other code or another device are measured again")

    def in_time(rows: int) -> bool:
        return seconds is None or time.perf_counter() - start + rows * longest <= seconds

    for group in groups:
        if all(results.find(setup.key) for setup in group):
            done += len(group)
            continue
        for setup in group:
            results.discard(setup.key)
        rows: list[Row] = []
        if in_time(len(group)):
            for setup in group:
                if not in_time(1):
                    break
                done += 1
                say(f"[{done}/{total}] {setup}")
                before = time.perf_counter()
                row = dataclasses.asdict(setup) | measure(setup)
                if row["status"] != "measured":
                    say(f"    {row['status']}: {row.get('message', 'no reason was given')}")
                row["seconds"] = time.perf_counter() - before
                longest = max(longest, row["seconds"])
                rows.append(row)
                for other in rows:
                    compare(other, rows)
                results.add(row)
        left_out += [str(setup) for setup in group[len(rows) :]]
    results.head["left_out"] = left_out
    results.write()
    if left_out:
        say(f"{len(left_out)} rows left out for lack of time; --resume measures them")
