"""One row of `vkq bench throughput` or `vkq bench scaling --mesh`: decode steps from a full cache.

Prefills take most of a row's time and say nothing of a step, so the cache is coded from random keys
and values instead: those of one layer of one sequence, which all others hold as well. `vkq bench
prefill` measures prefills.

Runs in a process of its own (see `worker`): a device's peak of memory never falls within one.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

import pallas_kernels
import vkq_jax
from models.families.mesh_fit import check_fit
from models.generation.decode_loop import DecodeState
from models.model import Model
from models.sharding.mesh import mesh_sizes
from models.sharding.placing import sequence_parts
from pallas_kernels.shapes import find_shape
from vkq_apps.bench import device_memory
from vkq_apps.bench.codes import read_codes
from vkq_apps.bench.decoding import compare_implementations, measure_decoding, place_state
from vkq_apps.bench.random_model import (
    abstract_model,
    decode_weight_bytes,
    drawn_model,
    llava_config,
)
from vkq_apps.bench.sequence_cache import (
    abstract_cache,
    per_sequence,
    random_layer,
    repeated_cache,
)
from vkq_jax.cache.kv_cache import KVCache, LayerCache

__all__ = ["TRANSFORMERS", "ThroughputSetup", "batches_of", "measure_throughput"]

TRANSFORMERS = "transformers"
"""In place of an implementation: transformers' own `generate`, in PyTorch."""

_MOST_GB = 1e9


@dataclasses.dataclass(frozen=True)
class ThroughputSetup:
    """Settings of one row.

    Attributes:
        shape: name in `pallas_kernels.shapes`.
        preset: of the visual cache.
        implementation: of attention over the cache; None takes the default, `TRANSFORMERS` runs
            none of this library.
        budget_gb: 10^9 bytes for the caches of all sequences.
        round_to: besides the largest batch that fits, that batch rounded down to a multiple of this
            is measured, which matrix products like better; the faster one counts. 0: it is not.
        equal_to: preset at whose largest batch the row is measured as well; None: none.
        text_capacity: text tokens a sequence can hold.
        prompt_text: those of the prompt.
        sequences: most of a batch, whatever the budget; None: what the budget holds.
        short_steps, long_steps: of the two runs whose difference is timed.
        repeats: of the pair.
        compare_steps: greedy tokens to compare with the "xla" implementation; 0: none.
        mesh: devices to split the model over, each with its own `budget_gb`; None: one.
        fixed_batch: sequences to decode, whatever the budget; None: as many as fit.
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
        read_codes(self.preset)
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
            check_fit(mesh_sizes(self.mesh).model, llava_config(find_shape(self.shape)))
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
    """Fills `row` as it goes: what is known before memory runs out stays in it.

    Raises:
        DoesNotFit: the device has less memory than the caches take.
        NotImplementedError: `setup.fixed_batch` is no multiple of the mesh's parts of a batch.
    """

    def stage(text: str) -> None:
        row["stage"] = text
        say(text)

    stage("planning")
    shape = find_shape(setup.shape)
    model = abstract_model(shape, setup.mesh)
    parts = sequence_parts(model.mesh)
    cache = _planned_cache(setup, setup.preset, parts, setup.implementation)
    implementation = pallas_kernels.choose_implementation(setup.implementation, cache)
    nbytes = per_sequence(vkq_jax.cache_nbytes(cache), parts)
    row |= {
        "implementation_taken": implementation,
        "visual_tokens": shape.visual_tokens,
        "bytes_per_sequence": nbytes,
        "weight_bytes": decode_weight_bytes(model),
    }
    devices = 1 if model.mesh is None else model.mesh.size
    own, equal = batches_of(setup, nbytes["total"], devices, parts)
    row["batch"] = largest = max(own)
    if not largest:
        row |= {
            "status": "does not fit",
            "message": f"a sequence of {setup.preset} takes {nbytes['total']} bytes, more than the "
            "budget",
        }
        return
    needed = largest * nbytes["total"] // devices
    device_memory.check_fits(needed, f"the caches of {largest} sequences")

    stage("drawing weights")
    model = drawn_model(model)
    draw = partial(
        random_layer,
        shape=shape,
        visual=shape.visual_tokens,
        text=setup.text_capacity,
        codes=read_codes(setup.preset),
        implementation=implementation,
    )
    # On the host, from where each process may hand it to a program of all devices.
    layer = jax.device_get(jax.jit(draw)(jax.random.key(0)))
    if setup.compare_steps:
        row["agreement"] = None
        if implementation != "xla":
            stage("comparing with xla")
            state = jax.jit(partial(_start, setup, model, parts))(layer)
            row["agreement"] = compare_implementations(
                model, state, implementation, "xla", setup.compare_steps
            )
    row["batches"] = []
    for batch in sorted({*own, equal} - {0}, reverse=True):
        stage(f"decoding {batch} sequences")
        figures = measure_decoding(
            model,
            partial(_start, setup, model, batch),
            layer,
            batch,
            implementation=implementation,
            steps=(setup.short_steps, setup.long_steps),
            repeats=setup.repeats,
            profile=setup.profile,
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


def _planned_cache(
    setup: ThroughputSetup, preset: str, batch: int, implementation: str | None
) -> KVCache:
    """The cache that decoding reads, abstract."""
    shape = find_shape(setup.shape)
    return abstract_cache(shape, read_codes(preset), batch, setup.text_capacity, implementation)


def _start(setup: ThroughputSetup, model: Model, batch: int, layer: LayerCache) -> DecodeState:
    """The state before the first tokens of `batch` sequences, which are random."""
    shape = find_shape(setup.shape)
    tokens = jax.random.randint(jax.random.key(1), (batch,), 0, shape.vocab_size)
    # A mesh pads the vocabulary.
    logits = jax.nn.one_hot(tokens, len(model.params["text"]["lm_head"]["weight"]))
    cache = repeated_cache(layer, shape, batch, setup.prompt_text)
    return place_state(model.mesh, DecodeState.start(logits, cache))


def batches_of(setup: ThroughputSetup, one: int, devices: int, parts: int) -> tuple[set[int], int]:
    """Batches of sequences of `one` byte count: the row's own, and that of the preset it equals.

    Both are multiples of `parts`; 0 where the budget holds no such batch, or no preset is named.
    """
    if (batch := setup.fixed_batch) is not None:
        if batch % parts:
            raise NotImplementedError(f"{setup.mesh} takes batches of a multiple of {parts}")
        return {batch}, 0

    def largest(one: int) -> int:
        held = int(devices * setup.budget_gb * 1e9 // one)
        most = held if setup.sequences is None else min(held, setup.sequences)
        return most // parts * parts

    own = {largest(one)}
    if setup.round_to:
        step = setup.round_to * parts
        own |= {batch // step * step for batch in own}
    if setup.equal_to is None:
        return own, 0
    cache = _planned_cache(setup, setup.equal_to, parts, None)
    return own, largest(per_sequence(vkq_jax.cache_nbytes(cache), parts)["total"])
