"""Published and own data from local folders, for `--data FORMAT=PATH`."""

from collections.abc import Sequence
from types import MappingProxyType

from vkq_apps.evals.datasets.benchmarks import MMBENCH, MME
from vkq_apps.evals.datasets.documents import CHARTQA, DOCVQA, OCR_BENCH, TEXTVQA
from vkq_apps.evals.datasets.format import Format
from vkq_apps.evals.datasets.own import JSONL
from vkq_apps.evals.datasets.photographs import COCO, GQA, POPE, VQAV2
from vkq_apps.evals.metrics import METRICS
from vkq_apps.evals.tasks import Task
from vkq_apps.files.text_files import with_home

__all__ = ["FORMATS", "read_data"]

_ALL = (JSONL, COCO, DOCVQA, TEXTVQA, CHARTQA, OCR_BENCH, MMBENCH, MME, POPE, VQAV2, GQA)
FORMATS = MappingProxyType[str, Format]({one.name: one for one in _ALL})


def read_data(given: Sequence[str], metric: str | None = None) -> dict[str, Task]:
    """The tasks of `--data`, by name: the format's, or the file's for a JSONL.

    Args:
        given: `FORMAT=PATH`, each.
        metric: that of JSONL files, one of `METRICS`.

    Raises:
        ValueError: an unknown format or metric, two tasks of one name, or a bad record.
        FileNotFoundError: a file or folder that is not there.
    """
    if metric is not None and metric not in METRICS:
        raise ValueError(f"--metric: expected one of {', '.join(METRICS)}, got {metric!r}")
    tasks: dict[str, Task] = {}
    for item in given:
        name, equals, place = item.partition("=")
        if not equals or name not in FORMATS or not place:
            raise ValueError(
                f"--data: expected FORMAT=PATH with one of {', '.join(FORMATS)}, got {item!r}"
            )
        path = with_home(place)
        if name == JSONL.name:
            own = METRICS[metric] if metric else None
            task = JSONL.task(path, name=path.stem, metric=own)
        else:
            task = FORMATS[name].task(path)
        if task.name in tasks:
            raise ValueError(f"--data: expected tasks of different names, got {task.name!r} twice")
        tasks[task.name] = task
    if metric is not None and not any(item.startswith("jsonl=") for item in given):
        raise ValueError("--metric: expected --data jsonl=FILE, whose answers it scores")
    return tasks
