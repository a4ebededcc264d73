"""Samples: questions about pictures with their right answers."""

import dataclasses
from collections.abc import Callable, Sequence

from models import Clip
from models.inputs.images import Picture

__all__ = ["Sample", "exchange_pictures"]


@dataclasses.dataclass(frozen=True)
class Sample:
    """One question.

    Attributes:
        key: names the sample within its task; the same in every run.
        picture: names its pictures and clips; samples of one name share their features and prefix.
        load: the pictures, read or drawn when they are needed.
        num_pictures: how many `load` gives.
        question: without image tokens or chat template.
        answers: what counts as right; the metric says how.
        choices: answers to choose from by log-likelihood; empty where the model writes its own.
        clips: after the pictures; their frames are read when they are needed.
        num_frames: of each clip, see `models.prepare`.
        part: a finer class than the task, such as "read_line"; reported beside the task.
        place: gives the file and line of its record, for errors; None: it was drawn.
    """

    key: str
    picture: str
    load: Callable[[], Sequence[Picture]]
    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    num_pictures: int = 1
    clips: tuple[Clip, ...] = ()
    num_frames: int | None = None
    part: str = ""
    place: Callable[[], str] | None = None


def exchange_pictures(samples: Sequence[Sample]) -> list[Sample]:
    """The control: each question about the next picture of the list instead of its own.

    A model that still answers well does not look.

    Raises:
        ValueError: there is only one picture.
    """
    first = {sample.picture: sample for sample in samples}
    names = list(first)
    if len(names) < 2:
        raise ValueError(
            "--control: expected at least two pictures a task, got one; more --samples"
        )
    following = dict(zip(names, [*names[1:], names[0]], strict=True))
    exchanged = []
    for sample in samples:
        other = first[following[sample.picture]]
        exchanged.append(
            dataclasses.replace(
                sample,
                picture=other.picture,
                load=other.load,
                num_pictures=other.num_pictures,
                clips=other.clips,
                num_frames=other.num_frames,
            )
        )
    return exchanged
