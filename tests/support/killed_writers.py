"""Kills writers at each of their steps and looks at the files they leave; prints JSON.

A program of its own, since it forks, which JAX's threads in a test process do not survive:
`python -m tests.support.killed_writers FOLDER`.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import safe_open

import vkq_jax
from vkq_apps.files.results_file import write_json
from vkq_apps.inspection.output_folder import SUMMARY, WRITTEN_BY, complete_or_nothing
from vkq_apps.training import checkpointing
from vkq_jax.files import persistence
from vkq_jax.files.atomic_write import atomic_write

# What Python tells of before it happens: https://docs.python.org/3/library/audit_events.html
STEPS = ("open", "os.", "shutil.", "tempfile.", "fcntl.")


def write_results(path: Path, number: int) -> None:
    write_json(path, {"rows": [{"number": number}] * 100})


def read_results(path: Path) -> int:
    rows = json.loads(path.read_text())["rows"]
    (number,) = {row["number"] for row in rows}
    return number if len(rows) == 100 else -1


def write_score_map(path: Path, number: int) -> None:
    table = np.full((50, 60), float(number), np.float32)
    vkq_jax.save_score_map(path, vkq_jax.ScoreMap(table, table))  # type: ignore[arg-type]


def read_tensors(path: Path) -> int:
    with safe_open(path, framework="numpy") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    (number,) = {int(value) for tensor in tensors for value in tensor.ravel()}
    return number


def write_training(path: Path, number: int) -> None:
    state = {"params": [np.full(1000, number), np.full((3, 7), number)]}
    checkpointing.save(path, state, {"step": number})


def read_training(path: Path) -> int:
    step = checkpointing.read_info(path)["step"]
    return step if step == read_tensors(path) else -1


def write_folder(path: Path, number: int) -> None:
    with complete_or_nothing(path) as folder:
        files = [SUMMARY, *(f"{i}.txt" for i in range(3))]
        for name in files[1:]:
            (folder / name).write_text(f"{number} " * 2000)
        (folder / SUMMARY).write_text(json.dumps({"written_by": WRITTEN_BY, "files": files}))


def read_folder(path: Path) -> int:
    files = json.loads((path / SUMMARY).read_text())["files"]
    (number,) = {number for name in files[1:] for number in (path / name).read_text().split()}
    return int(number) if {file.name for file in path.iterdir()} == set(files) else -1


WRITERS: dict[str, tuple[Callable[[Path, int], None], Callable[[Path], int]]] = {
    "results": (write_results, read_results),
    "score map": (write_score_map, read_tensors),
    "training": (write_training, read_training),
    "folder": (write_folder, read_folder),
}


def run_child(work: Callable[[], object]) -> int:
    """Runs `work` in a fork; returns how the process ended, as a wait status."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def kill_at(step: int) -> None:
    """From here on this process is killed just before its file operation number `step`."""
    counted = iter(range(step))

    def count(event: str, arguments: object) -> None:
        if event.startswith(STEPS) and event != "os.kill" and next(counted, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def kill_at_each_step(name: str, folder: Path) -> tuple[int, list[str]]:
    """How many steps a writer has, and the problems that its death before any of them leaves."""
    write, read = WRITERS[name]
    path, problems = folder / "file", []
    write(path, 0)
    for step in range(1000):
        status = run_child(lambda step=step: (kill_at(step), write(path, 1)))
        if not os.WIFSIGNALED(status):
            if status != 0 or read(path) != 1:
                problems.append("the whole write is not there")
            return step, problems
        try:
            if read(path) not in (0, 1):
                problems.append(f"step {step}: neither the old file nor the new one")
        except Exception as error:
            problems.append(f"step {step}: {type(error).__name__}: {error}")
        write(path, 0)
        left = sorted(entry.name for entry in folder.iterdir() if entry != path)
        if left or read(path) != 0:
            problems.append(f"step {step}: the next write leaves {left} and {read(path)}")
    return 1000, ["the writer never ends"]


def overtake_a_live_writer(folder: Path) -> list[str]:
    """A second process writes the same file while the first one is at it: both succeed."""
    path = folder / "file"
    started, go_on = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with atomic_write(path) as part:
                part.write_text("first")
                os.write(started[1], b".")
                os.read(go_on[0], 1)
            code = 0
        finally:
            os._exit(code)
    os.read(started[0], 1)
    with atomic_write(path) as part:
        part.write_text("second")
    problems = [] if path.read_text() == "second" else ["the second write is not there"]
    os.write(go_on[1], b".")
    if os.waitpid(child, 0)[1] != 0 or path.read_text() != "first":
        problems.append("the live writer lost its part")
    return problems + [entry.name for entry in folder.iterdir() if entry != path]


def fill_the_disk(folder: Path) -> list[str]:
    """Errors of writers whose file grows too large; nothing may change."""
    messages = []
    for name, (write, read) in WRITERS.items():
        path = folder / name
        write(path, 0)
        most, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            write(path, 1)
        except OSError as error:
            messages.append(str(error))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
        if read(path) != 0:
            messages.append(f"{name}: the old file is gone")
    left = sorted({entry.name for entry in folder.iterdir()} - set(WRITERS))
    return messages + left


def main(folder: Path) -> None:
    # A process that has used JAX cannot fork any more: arrays stay NumPy's, and are not checked.
    persistence.as_array = lambda name, x: x
    persistence.check_tree = lambda tree, name: None
    record: dict[str, object] = {}
    for name in WRITERS:
        place = folder / name
        place.mkdir()
        steps, problems = kill_at_each_step(name, place)
        record[name] = {"steps": steps, "problems": problems}
    for work in (overtake_a_live_writer, fill_the_disk):
        place = folder / work.__name__
        place.mkdir()
        record[work.__name__] = work(place)
    print(json.dumps(record))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
