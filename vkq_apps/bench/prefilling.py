"""One row of `vkq bench prefill`: a few prompts at once, what a call takes and what compiling does.

Runs in a process of its own (see `worker`): a device's peak of memory never falls within one.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from models.families.mesh_fit import check_fit
from models.generation.prefill import prefill
from models.inputs.on_mesh import place_inputs
from models.sharding.mesh import mesh_sizes
from models.sharding.placing import sequence_parts
from pallas_kernels.shapes import ModelShape, find_shape
from vkq_apps.bench import device_memory
from vkq_apps.bench.codes import BASELINE, read_codes
from vkq_apps.bench.compiling import compile_ahead
from vkq_apps.bench.random_model import (
    VISION_LAYERS,
    abstract_model,
    drawn_model,
    llava_config,
    prompts,
)
from vkq_apps.bench.sequence_cache import random_tables_of
from vkq_apps.bench.timing import time_of_calls

__all__ = ["PrefillSetup", "compare_prefill", "measure_prefill", "most_sequences"]


@dataclasses.dataclass(frozen=True)
class PrefillSetup:
    """Settings of one row.

    Attributes:
        shape: name in `pallas_kernels.shapes`.
        preset: codes of the cache, see `read_codes`.
        implementation: of attention over the cache, for which codes are laid out; None takes the
            default.
        text_capacity: text tokens a sequence can hold.
        prompt_text: those of the prompt.
        sequences: prompts at once; None: as many as `most_sequences` says.
        repeats: of the timing.
        mesh: devices to split the model over; None: one.
    """

    shape: str
    preset: str
    implementation: str | None = None
    text_capacity: int = 64
    prompt_text: int = 32
    sequences: int | None = None
    repeats: int = 3
    mesh: str | None = None

    def __post_init__(self) -> None:
        """Checks names and numbers before a process is started."""
        find_shape(self.shape)
        read_codes(self.preset)
        if not 2 <= self.prompt_text <= self.text_capacity:
            raise ValueError(
                f"expected 2 or more text tokens of a prompt and a text capacity that holds them, "
                f"got {self.prompt_text} and {self.text_capacity}"
            )
        if self.mesh is not None:
            check_fit(mesh_sizes(self.mesh).model, llava_config(find_shape(self.shape)))

    @property
    def key(self) -> dict[str, Any]:
        """All of it."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """For people."""
        mesh = "" if self.mesh is None else f", {self.mesh}"
        return f"{self.shape}, prefill, {self.preset}{mesh}"


def most_sequences(shape: ModelShape, text_tokens: int, budget: float = 4e9) -> int:
    """Sequences prefilled at once, 1 to 4: attention's float32 scores are to fit `budget` bytes."""
    positions = shape.visual_tokens + text_tokens
    return max(1, min(4, int(budget / (4 * shape.num_heads * positions**2))))


def measure_prefill(setup: PrefillSetup, row: dict[str, Any], say: Callable[[str], None]) -> None:
    """Fills `row` as it goes.

    The peak is read after the first run only, and after compiling, whose trials take memory too:
    where the run does not exceed those, its own peak is not known and is recorded as null. The
    compiler's plan for a call (`temporary_bytes`) is exact.

    Raises:
        DoesNotFit: the device has less memory than the prompts take.
    """

    def stage(text: str) -> None:
        row["stage"] = text
        say(text)

    shape, codes = find_shape(setup.shape), read_codes(setup.preset)
    stage("drawing weights")
    model = abstract_model(shape, setup.mesh)
    parts = sequence_parts(model.mesh)
    sequences = setup.sequences or max(most_sequences(shape, setup.prompt_text), parts)
    inputs = prompts(shape, -(-sequences // parts) * parts, setup.prompt_text)
    inputs = place_inputs(model.mesh, inputs)
    row |= {
        "visual_tokens": shape.visual_tokens,
        "vision_layers": VISION_LAYERS,
        "sequences_at_once": inputs.input_ids.shape[0],
        "tokens": inputs.input_ids.shape[1],
    }
    model = drawn_model(model)
    tables = jax.jit(lambda key: random_tables_of(codes, shape, key))(jax.random.key(0))

    stage("compiling")
    compiled = compile_ahead(
        prefill,
        model,
        inputs,
        None,
        quant=codes.quant,
        cache_length=setup.text_capacity,
        implementation=setup.implementation,
        tables=tables,
        text_bits=codes.text_bits,
    )
    row |= {
        "compile_seconds": compiled.seconds,
        "compile_cached": compiled.cached,
        "temporary_bytes": compiled.temporary_bytes,
    }
    stage(f"prefilling {len(inputs.mask)} sequences")
    arguments: dict[str, Any] = {"tables": tables}
    held, before = device_memory.in_use(), device_memory.peak()
    jax.block_until_ready(compiled.call(model, inputs, None, **arguments))
    peak = device_memory.peak()
    taken = time_of_calls(
        lambda: compiled.call(model, inputs, None, **arguments), repeats=setup.repeats
    )
    row |= {
        "milliseconds": 1e3 * taken.best,
        "wall_milliseconds": 1e3 * taken.wall,
        "timed_by": taken.timed_by,
        "held_bytes": held,
        "peak_bytes": peak if before is None or (peak or 0) > before else None,
    }
    del row["stage"]


def compare_prefill(row: dict[str, Any], group: Sequence[dict[str, Any]]) -> None:
    """Adds the row's time over that of the group's bfloat16 row."""
    dense = group[0]
    if row["status"] == dense["status"] == "measured" and dense["preset"] == BASELINE:
        row["ratio_to_bf16"] = row["milliseconds"] / dense["milliseconds"]
