"""A piece of a training from its options: what is trained, the feed, the log, the saved state."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from models.sharding.mesh import make_mesh
from models.sharding.placing import place_shared
from vkq_apps.training import checkpointing
from vkq_apps.training.attention import Implementation, choose_implementation
from vkq_apps.training.encoding import RECIPE, Encoding
from vkq_apps.training.evaluation import evaluate
from vkq_apps.training.feeding import Feed, InlineFeed, PooledFeed
from vkq_apps.training.heldout import heldout_chunk
from vkq_apps.training.judge import load_judge
from vkq_apps.training.judge_checkpoint import judge_encoding, read_digest, write_start
from vkq_apps.training.judge_parts import check_parts, parts_info, read_parts
from vkq_apps.training.model import ModelSize, create_model, with_checkpoint
from vkq_apps.training.optimizer import AnySchedule, FittedSchedule, Schedule
from vkq_apps.training.options import TrainOptions
from vkq_apps.training.pictures import shares_of
from vkq_apps.training.piece import Piece
from vkq_apps.training.rendering import Renderers
from vkq_apps.training.step import (
    TrainState,
    bind,
    initial_state,
    make_predict,
    make_train_step,
)
from vkq_apps.training.text_tower import read_tower
from vkq_apps.training.watching import Log, stop_signals

__all__ = ["PARTS_FILE", "SMALL", "STATE_FILE", "train"]

STATE_FILE, PARTS_FILE, LOG_FILE = "state.safetensors", "parts.safetensors", "log.jsonl"
SMALL = ModelSize(width=64, num_layers=2, vision_mlp_width=128, text_mlp_width=96)


def train(options: TrainOptions) -> TrainState:
    """Runs one piece of a training and returns the state at its end.

    Raises:
        ValueError: options that contradict each other or what `--out` holds.
    """
    started = time.perf_counter()
    file = options.out / STATE_FILE
    if file.exists() != options.resume:
        raise ValueError(
            f"{file} does not exist: leave out --resume"
            if options.resume
            else f"{file} exists: give --resume to go on, or another --out"
        )
    if options.resume and options.start_from:
        raise ValueError("--resume goes on from the saved state: leave out --start-from")
    schedule: AnySchedule = Schedule(
        steps=options.steps, peak=options.peak, warmup=options.warmup, easy=options.easy
    )
    deadline = started + (options.stop_after_seconds or float("inf"))
    if options.fit_steps:
        if not (options.text_tower and options.stop_after_seconds):
            raise ValueError("--fit-steps needs --text-tower and --stop-after-seconds")
        schedule = FittedSchedule(schedule, deadline)
    mesh = make_mesh(f"data={options.devices}") if options.devices > 1 else None
    shares = shares_of(options.shares)
    first = checkpointing.read_info(file)["step"] if options.resume else 0
    options.out.mkdir(parents=True, exist_ok=True)
    prepare = _prepare_judge if options.text_tower else _prepare_embedded
    encoding, make_subject = prepare(options, schedule, mesh)
    with contextlib.ExitStack() as stack:
        # Processes start before JAX takes the device, and render while the step compiles.
        renderers = _start_renderers(options, first, schedule, encoding, shares, stack)
        implementation, refused = choose_implementation(options.attention, options.devices)
        subject = make_subject(implementation)
        state = subject.state
        if options.resume:
            state, _ = checkpointing.restore(file, state)
        state = place_shared(mesh, state)  # all of it, so that the step is compiled once
        log = Log(options.out / LOG_FILE)
        log(
            event="start",
            step=first,
            parameters=subject.parameters,
            device=jax.devices()[0].device_kind,
            jax=jax.__version__,
            attention=implementation,
            attention_refused=refused,
            options={name: str(value) for name, value in vars(options).items()},
        )
        test = heldout_chunk(options.heldout, encoding)
        piece = Piece(
            options,
            schedule,
            feed=_start_feed(options, renderers, encoding, shares, mesh),
            step=subject.step,
            score=lambda params, roll=0: evaluate(
                bind(subject.predict, params, mesh), test, options.heldout, roll=roll
            ),
            save=lambda state, number: subject.save(
                file, state, {"step": number, "steps": schedule.steps}
            ),
            log=log,
            stop=stack.enter_context(stop_signals()),
            deadline=deadline,
        )
        return piece.run(state, first)


@dataclasses.dataclass(frozen=True)
class _Subject:
    """The model that is trained, and its functions.

    Attributes:
        state: at the start.
        parameters: how many the model has.
        step: see `make_train_step`.
        predict: see `make_predict`.
        save: writes a state and what is known about it to a file.
    """

    state: TrainState
    parameters: int
    step: Callable[..., Any]
    predict: Callable[..., jax.Array]
    save: Callable[[Path, TrainState, dict[str, Any]], None]


type _MakeSubject = Callable[[Implementation], _Subject]


def _prepare_embedded(
    options: TrainOptions, schedule: AnySchedule, mesh: Mesh | None
) -> tuple[Encoding, _MakeSubject]:
    """The embedded model, all of whose parameters are trained."""
    assert isinstance(schedule, Schedule)  # compiled into the step
    size = SMALL if options.smoke else ModelSize()

    def make(implementation: Implementation) -> _Subject:
        dtype = jnp.float32 if options.smoke else jnp.bfloat16
        graphdef, params = create_model(size, options.seed, dtype)
        if options.start_from:
            params = with_checkpoint(params, str(options.start_from))
        return _Subject(
            initial_state(params, schedule),
            sum(leaf.size for leaf in jax.tree.leaves(params["llava"])),
            make_train_step(graphdef, schedule, implementation, unroll=options.unroll, mesh=mesh),
            make_predict(graphdef, implementation),
            lambda file, state, info: checkpointing.save(file, state, info | {"size": vars(size)}),
        )

    return RECIPE, make


def _prepare_judge(
    options: TrainOptions, schedule: AnySchedule, mesh: Mesh | None
) -> tuple[Encoding, _MakeSubject]:
    """A pretrained text tower with the embedded model's vision tower."""
    folder, tower, parts = options.out / "start", options.text_tower, options.start_from
    assert tower is not None
    if parts is not None and (rank := parts_info(parts)["rank"]) != options.rank:
        raise ValueError(f"--start-from: {parts} has adapters of rank {rank}, give --rank {rank}")
    if not options.resume:
        write_start(read_tower(tower), folder)
    if parts is not None:
        check_parts(parts, parts_info(parts), tower, read_digest(folder))
    encoding = judge_encoding(folder)

    def make(implementation: Implementation) -> _Subject:
        judge = load_judge(
            folder,
            options.rank,
            encoding.prefix,
            dtype=jnp.float32 if options.smoke else jnp.bfloat16,
            mesh=mesh,
        )
        known = {"tower": read_digest(folder), "rank": options.rank}
        state = judge.initial_state()
        if parts is not None:
            state = dataclasses.replace(state, params=read_parts(parts, judge.trained))

        def save(file: Path, state: TrainState, info: dict[str, Any]) -> None:
            checkpointing.save(file, state, info | known)
            parts = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.params)
            checkpointing.save(options.out / PARTS_FILE, parts, info | known)

        return _Subject(
            state,
            judge.parameters,
            judge.make_step(schedule, implementation, unroll=options.unroll),
            judge.make_predict(implementation),
            save,
        )

    return encoding, make


def _start_renderers(
    options: TrainOptions,
    first: int,
    schedule: AnySchedule,
    encoding: Encoding,
    shares: Mapping[str, float],
    stack: contextlib.ExitStack,
) -> Renderers | None:
    if not options.workers:
        return None
    renderers = Renderers(
        options.workers,
        chunk_size=options.chunk,
        slots=options.slots,
        # Each piece draws pictures of its own.
        seed=f"{options.seed}/{first}",
        difficulty=schedule.difficulty(first),
        encoding=encoding,
        shares=shares,
    )
    return stack.enter_context(renderers)


def _start_feed(
    options: TrainOptions,
    renderers: Renderers | None,
    encoding: Encoding,
    shares: Mapping[str, float],
    mesh: Mesh | None,
) -> Feed:
    if renderers is None:
        return InlineFeed(options.batch, options.seed, encoding, shares, mesh)
    return PooledFeed(
        renderers,
        chunks=options.pool,
        mixed=options.mixed,
        batch=options.batch,
        chunk_size=options.chunk,
        seed=options.seed,
        mesh=mesh,
    )
