"""One row of `vkq bench throughput`: generation at one shape, memory budget and preset.

Runs in a process of its own (see `worker`): a device's peak of memory never falls within one.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

import pallas_kernels
import vkq_jax
from models.generation.prefill import prefill
from models.inputs.batch import Inputs
from models.model import Model
from models.sharding.inputs import place_inputs
from models.sharding.mesh import check_fit, check_text
from models.sharding.placing import sequence_parts
from pallas_kernels.shapes import find_shape
from vkq_apps.bench import device_memory
from vkq_apps.bench.decoding import (
    compare_implementations,
    first_state,
    measure_decoding,
    place_state,
    replicate,
)
from vkq_apps.bench.prefilling import measure_prefill, most_sequences
from vkq_apps.bench.random_model import (
    VISION_LAYERS,
    abstract_model,
    decode_weight_bytes,
    drawn_model,
    llava_config,
    prompts,
)
from vkq_apps.bench.sequence_cache import per_sequence
from vkq_jax.cache import KVCache

__all__ = ["ThroughputSetup", "measure_throughput"]

_MOST_GB = 1e9


@dataclasses.dataclass(frozen=True)
class ThroughputSetup:
    """Settings of one row.

    Attributes:
        shape: name in `pallas_kernels.shapes`. preset: of the visual cache.
        implementation: of attention over the cache; None takes the default.
        budget_gb: 10^9 bytes for the caches of all sequences.
        round_to: besides the largest batch that fits, that batch rounded down to a multiple of this
            is measured, which matrix products like better; the faster one counts. 0: it is not.
        equal_to: preset at whose largest batch the row is measured as well; None: none.
        text_capacity: text tokens a sequence can hold. prompt_text: those of the prompt.
        sequences: most of the whole run: of a batch that is decoded, whatever the budget, and of
            those prefilled at once; None: what the budget holds, and what `most_sequences` says.
        short_steps, long_steps: of the two runs whose difference is timed. repeats: of the pair.
        compare_steps: greedy tokens to compare with the "xla" implementation; 0: none.
        mesh: devices to split the model over, each with its own `budget_gb`; None: one.
        fixed_batch: sequences to decode, whatever would fit, see `measure_fixed_batch`; None: as
            many as fit.
        profile: of a step of a `fixed_batch`, see `measure_decoding`.
    """

    shape: str
    preset: str
    implementation: str | None
    budget_gb: float
    round_to: int = 64
    equal_to: str | None = None
    text_capacity: int = 64
    prompt_text: int = 32
    sequences: int | None = None
    short_steps: int = 4
    long_steps: int = 20
    repeats: int = 3
    compare_steps: int = 0
    mesh: str | None = None
    fixed_batch: int | None = None
    profile: bool = False

    def __post_init__(self) -> None:
        """Checks names and numbers before a process is started."""
        find_shape(self.shape)
        vkq_jax.resolve(self.preset)
        if not 0 < self.short_steps < self.long_steps or self.repeats < 1:
            raise ValueError(
                f"steps must be two rising numbers and repeats positive, got "
                f"{self.short_steps}, {self.long_steps} and {self.repeats}"
            )
        needed = self.prompt_text + max(self.long_steps, self.compare_steps)
        if self.prompt_text < 2 or needed > self.text_capacity:
            raise ValueError(
                f"{self.prompt_text} text tokens of a prompt and {needed - self.prompt_text} "
                f"generated ones do not fit a text capacity of {self.text_capacity}"
            )
        if not 0 < self.budget_gb < _MOST_GB:
            raise ValueError(
                f"a budget must be positive and below {_MOST_GB:g} GB, got {self.budget_gb} GB"
            )
        if self.mesh is not None:
            check_fit(check_text(self.mesh).get("model", 1), llava_config(find_shape(self.shape)))
        if self.round_to < 0:
            raise ValueError(f"a batch cannot be rounded to {self.round_to}")

    @property
    def key(self) -> dict[str, Any]:
        """All but the comparison, which not every run makes in the same row."""
        key = dataclasses.asdict(self)
        del key["compare_steps"]
        return key

    def __str__(self) -> str:
        """For people."""
        by = self.implementation or "default"
        size = f"{self.budget_gb:g} GB" if self.fixed_batch is None else f"x {self.fixed_batch}"
        mesh = "" if self.mesh is None else f", {self.mesh}"
        return f"{self.shape}, {size}, {self.preset} ({by}){mesh}"


def measure_throughput(
    setup: ThroughputSetup, row: dict[str, Any], say: Callable[[str], None]
) -> None:
    """Fills `row` as it goes: what is known before memory runs out stays in it."""

    def stage(text: str) -> None:
        row["stage"] = text
        say(text)

    stage("planning")
    shape, quant = find_shape(setup.shape), vkq_jax.resolve(setup.preset)
    model = abstract_model(shape, setup.mesh)
    parts = sequence_parts(model.mesh)
    sequences = setup.sequences or max(most_sequences(shape, setup.prompt_text), parts)
    inputs = prompts(shape, -(-sequences // parts) * parts, setup.prompt_text)
    inputs = place_inputs(model.mesh, inputs)
    sequences = len(inputs.mask)
    cache = _planned_cache(model, inputs, setup.preset, setup.text_capacity, setup.implementation)
    implementation = pallas_kernels.choose_implementation(setup.implementation, cache)
    row |= {
        "implementation_taken": implementation,
        "visual_tokens": shape.visual_tokens,
        "vision_layers": VISION_LAYERS,
        "bytes_per_sequence": per_sequence(vkq_jax.cache_nbytes(cache), sequences),
        "weight_bytes": decode_weight_bytes(model),
    }
    one = row["bytes_per_sequence"]["total"]
    devices = 1 if model.mesh is None else model.mesh.size
    largest = row["batch"] = _batch(setup, one, devices) // parts * parts
    if not largest:
        row |= {
            "status": "does not fit",
            "message": f"a sequence of {setup.preset} takes {one} bytes, more than the budget",
        }
        return
    device_memory.check_fits(largest * one // devices, f"the caches of {largest} sequences")
    own = {largest}
    if setup.round_to:
        own.add(largest // (setup.round_to * parts) * setup.round_to * parts)
    equal = 0
    if setup.equal_to is not None:
        other = _planned_cache(model, inputs, setup.equal_to, setup.text_capacity, None)
        one = per_sequence(vkq_jax.cache_nbytes(other), sequences)["total"]
        equal = _batch(setup, one, devices) // parts * parts

    stage("drawing weights")
    model = drawn_model(model)
    stage(f"prefilling {sequences} sequences")
    logits, cache, figures = measure_prefill(
        model,
        inputs,
        quant=quant,
        cache_length=setup.text_capacity,
        implementation=setup.implementation,
        repeats=setup.repeats,
    )
    row |= figures
    state = place_state(model.mesh, first_state(logits, cache))
    if setup.compare_steps:
        row["agreement"] = None
        if implementation != "xla":
            stage(f"comparing with xla on {sequences} sequences")
            row["agreement"] = compare_implementations(
                model, state, implementation, "xla", setup.compare_steps
            )
    row["batches"] = []
    for batch in sorted({*own, equal} - {0}, reverse=True):
        stage(f"decoding {batch} sequences")
        figures = measure_decoding(
            model,
            partial(replicate, batch=batch),
            state,
            batch,
            implementation=implementation,
            steps=(setup.short_steps, setup.long_steps),
            repeats=setup.repeats,
        )
        row["batches"].append({"batch": batch, **figures})
    row |= max(
        (figures for figures in row["batches"] if figures["batch"] in own),
        key=lambda figures: figures["tokens_per_second"],
    )
    row["peak_bytes"] = device_memory.peak()
    row["equal_batch"] = equal or None
    if model.mesh is not None:
        row["peak_bytes_per_device"] = device_memory.peaks()[: model.mesh.size]
    del row["stage"]


def _batch(setup: ThroughputSetup, one: int, devices: int) -> int:
    """Sequences of `one` byte count that the budgets hold, and no more than were asked for."""
    held = int(devices * setup.budget_gb * 1e9 // one)
    return held if setup.sequences is None else min(held, setup.sequences)


def _planned_cache(
    model: Model, inputs: Inputs, preset: str, text_capacity: int, implementation: str | None
) -> KVCache:
    """The cache that prefill fills and decoding reads, abstract."""

    def build(model: Model, inputs: Inputs) -> KVCache:
        _, cache = prefill(
            model,
            inputs,
            None,
            quant=vkq_jax.resolve(preset),
            cache_length=text_capacity,
            implementation=implementation,
        )
        return cache

    return jax.eval_shape(build, model, inputs)
