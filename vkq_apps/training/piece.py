"""One piece of a training: steps until the schedule, the time or a signal ends it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from vkq_apps.training.feeding import Feed
from vkq_apps.training.optimizer import AnySchedule, FittedSchedule
from vkq_apps.training.options import TrainOptions
from vkq_apps.training.step import TrainState
from vkq_apps.training.watching import Log, Window, progress_bar

__all__ = ["Piece"]

_LOG_STEPS = 100


@dataclasses.dataclass
class Piece:
    """Settings and state of one piece of a training."""

    options: TrainOptions
    schedule: AnySchedule
    feed: Feed
    step: Callable[..., Any]
    score: Callable[..., dict[str, float]]
    save: Callable[[TrainState, int], None]
    log: Log
    stop: list[int]
    deadline: float

    def run(self, state: TrainState, number: int) -> TrainState:
        """Steps until the schedule, the time or a signal ends the piece; saves and scores."""
        saved = scored = time.perf_counter()
        window = Window(number)
        with progress_bar(self.schedule.steps, number) as advance:
            while number < self.schedule.steps:
                now = time.perf_counter()
                if self.stop or now > self.deadline:
                    break
                if now - saved > self.options.save_every:
                    self.save(state, number)
                    saved = now
                if now - scored > self.options.evaluate_every:
                    self.log(event="evaluation", step=number, exact=self.score(state.params))
                    scored = now
                    window = Window(number)
                difficulty = self.schedule.difficulty(number)
                state, losses = self.step(state, *self.feed.sources(number, difficulty))
                number += 1
                window.add(losses)
                advance(number)
                if number % _LOG_STEPS == 0 or number == self.schedule.steps or self.options.smoke:
                    self._log_window(window, number)
                    window = Window(number)
                    if isinstance(self.schedule, FittedSchedule):
                        self.schedule.measure(number, time.perf_counter())
        self.save(state, number)
        if not self.stop:  # whoever sent a signal does not want to wait
            self.log(event="evaluation", step=number, exact=self.score(state.params))
            if number >= self.schedule.steps:
                exact = self.score(state.params, roll=1)
                self.log(event="shuffled_control", step=number, exact=exact)
        self.log(event="end", step=number)
        return state

    def _log_window(self, window: Window, number: int) -> None:
        means = window.means()
        seconds = time.perf_counter() - window.began
        self.log(
            event="steps",
            step=number,
            **means,
            learning_rate=float(self.schedule.learning_rate(number - 1)),
            pictures_per_second=round((number - window.first) * self.options.batch / seconds, 1),
            rendered=self.feed.rendered,
        )
