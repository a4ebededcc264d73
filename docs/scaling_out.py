"""Expectations of models that outgrow a GPU, worked out from one GPU's measured decode steps.

`uv run python docs/scaling_out.py` prints the tables of scaling_benchmarks.md;
`tests/test_docs_figures.py` holds the page to them. Nothing here was measured on several GPUs.
"""

import dataclasses
import json
import pathlib

import numpy as np

import vkq_jax
from models.sharding.mesh import mesh_sizes
from pallas_kernels.shapes import ModelShape
from vkq_apps.bench.codes import read_codes
from vkq_apps.bench.random_model import text_config
from vkq_apps.bench.sequence_cache import abstract_cache, per_sequence

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "throughput_h100.json"
PRESETS = ("none", "signs-1bit")
TEXT_CAPACITY = 64

# Data sheets: an H100's dense bfloat16, and NVLink 4 one way. Measured on two H200: a sum of
# 0.46 MB takes 11 us, of which its bytes are 1.
FLOPS, LINK, LATENCY = 989e12, 450e9, 10e-6
# Measured on two H200 as well (Qwen2.5-VL-7B, both caches): what of a layer's time more devices
# along `model` do not shorten.
UNSPLIT = 108e-6


@dataclasses.dataclass(frozen=True)
class Deployment:
    """A model, what its vision tower takes on every device, and the meshes to try."""

    shape: ModelShape
    vision_bytes: float
    meshes: tuple[str, ...]


_ONE_HOST_13B = ("data=8", "data=4,model=2", "data=2,model=4", "model=8")
_LARGE = ("data=2,model=4", "model=8", "data=4,model=4", "data=2,model=8", "data=4,model=8")
DEPLOYMENTS = (
    Deployment(
        ModelShape("LLaVA-1.5-13B", 40, 40, 40, 128, 5120, 13824, 32064, 576),
        0.6e9,
        (*_ONE_HOST_13B, "data=16"),
    ),
    Deployment(
        ModelShape("Qwen2.5-VL-72B", 80, 64, 8, 128, 8192, 29568, 152064, 8192, 1e6), 1.4e9, _LARGE
    ),
    Deployment(
        ModelShape("InternVL3-78B", 80, 64, 8, 128, 8192, 29568, 151674, 3328, 1e6), 11.8e9, _LARGE
    ),
)


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Time of a decode step of one device, fitted to the steps that were measured.

    seconds = read * weight bytes / bandwidth + multiply * FLOPs / peak
            + cache[preset] * cache bytes / bandwidth

    Attributes:
        bandwidth: of a copy, bytes a second. memory: bytes of a device. reserve: of them, for
            prefill's scratch.
        factors: read, multiply, and one for each of `PRESETS`.
        error: largest relative error over the measured steps. mean_error: their mean. steps: how
            many.
    """

    bandwidth: float
    memory: float
    reserve: float
    factors: tuple[float, ...]
    error: float
    mean_error: float
    steps: int

    @classmethod
    def fit(cls) -> "StepTime":
        """The fit to results/throughput_h100.json."""
        record = json.loads(RESULTS.read_text())
        rows = [(row, figures) for row in record["rows"] for figures in row["batches"]]
        bandwidth = record["bandwidth"]
        terms = np.array(
            [
                _terms(
                    bandwidth,
                    row["weight_bytes"],
                    figures["batch"],
                    figures["cache_bytes"],
                    row["preset"],
                )
                for row, figures in rows
            ]
        )
        measured = np.array([figures["step_ms"] / 1e3 for _, figures in rows])
        # Relative errors count, so that short steps do as much as long ones.
        factors, *_ = np.linalg.lstsq(terms / measured[:, None], np.ones(len(rows)), rcond=None)
        errors = np.abs(terms @ factors / measured - 1)
        return cls(
            bandwidth=bandwidth,
            memory=record["memory_limit"],
            reserve=max(row["prefill_temporary_bytes"] for row in record["rows"]),
            factors=tuple(map(float, factors)),
            error=float(errors.max()),
            mean_error=float(errors.mean()),
            steps=len(rows),
        )

    def seconds(self, weight_bytes: float, batch: int, cache_bytes: float, preset: str) -> float:
        """Seconds of a step of a device with these weights and caches, for `batch` sequences."""
        terms = _terms(self.bandwidth, weight_bytes, batch, cache_bytes, preset)
        return float(np.dot(terms, self.factors))


def _terms(
    bandwidth: float, weight_bytes: float, batch: int, cache_bytes: float, preset: str
) -> list[float]:
    caches = [cache_bytes / bandwidth if name == preset else 0.0 for name in PRESETS]
    # Two bytes and two operations a weight.
    return [weight_bytes / bandwidth, weight_bytes * batch / FLOPS, *caches]


def text_weight_bytes(shape: ModelShape) -> tuple[float, float]:
    """Bytes of a text tower in bfloat16: all, and what a decode step reads of them."""
    config = text_config(shape)
    heads = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    block = config.hidden_size * (2 * heads + 2 * keys + 3 * config.intermediate_size)
    table = config.vocab_size * config.hidden_size
    blocks = config.num_hidden_layers * block
    return 2.0 * (blocks + 2 * table), 2.0 * (blocks + table)


def sum_seconds(shape: ModelShape, sequences: float, model: int) -> float:
    """Seconds on the wire of a step's sums, behind attention, the MLP and the embedding."""
    if model == 1:
        return 0.0
    count = 2 * shape.num_layers + 1
    return count * (LATENCY + wire_bytes(shape, sequences, model) / count / LINK)


def unsplit_seconds(shape: ModelShape, model: int) -> float:
    """Seconds of a step by which its kernels miss their share of one device's time."""
    return shape.num_layers * UNSPLIT * (1 - 1 / model)


def split_step(shape: ModelShape, one: float, sequences: float, model: int) -> float:
    """Seconds of a step of `model` devices together that takes one device `one` seconds."""
    sums = sum_seconds(shape, sequences, model)
    return one / model + unsplit_seconds(shape, model) + sums


def wire_bytes(shape: ModelShape, sequences: float, model: int) -> float:
    """Bytes that each device sends in a step: a ring sends 2 (n - 1) / n of what it sums.

    Activations are bfloat16.
    """
    summed = (2 * shape.num_layers + 1) * sequences * shape.width * 2
    return 2 * (model - 1) / model * summed


def rows(deployment: Deployment, step: StepTime) -> list[str]:
    """A line for each mesh: what fits, and how fast it is then."""
    shape = deployment.shape
    one = {
        preset: per_sequence(
            vkq_jax.cache_nbytes(abstract_cache(shape, read_codes(preset), 1, TEXT_CAPACITY)),
            1,
        )["total"]
        for preset in PRESETS
    }
    whole, read = text_weight_bytes(shape)
    lines = []
    for mesh in deployment.meshes:
        data, model = mesh_sizes(mesh)
        weights = whole / model + deployment.vision_bytes
        budget = step.memory - step.reserve - weights
        cells = [shape.name, mesh, f"{data * model}", f"{weights / 1e9:.0f}"]
        if budget <= min(one.values()) / model:
            lines.append(f"| {' | '.join([*cells, 'none', *['does not fit'] + [''] * 5])} |")
            continue
        cells.append(f"{budget / 1e9:.0f}")
        sequences, times = [], []
        for preset in PRESETS:
            # Each device holds its KV heads of the sequences of one replica.
            own = int(budget * model // one[preset])
            seconds = step.seconds(read / model, own, own * one[preset] / model, preset)
            sums = sum_seconds(shape, own, model)
            times.append(seconds + unsplit_seconds(shape, model) + sums)
            sequences.append(data * own)
        cells += [f"{count:,}" for count in sequences]
        cells += [f"{1e3 * seconds:.0f}" for seconds in times]
        speeds = [count / seconds for count, seconds in zip(sequences, times, strict=True)]
        cells += [f"{speed:,.0f}" for speed in speeds]
        share = sum_seconds(shape, sequences[1] / data, model) / times[1]
        lines.append(f"| {' | '.join(cells)} | {share:.0%} |")
    return lines


HEAD = (
    "| model | mesh | GPUs | weights, GB a GPU | KV budget, GB a GPU | sequences: 16 bits | 1 bit "
    "| step, ms: 16 bits | 1 bit | tokens/s: 16 bits | 1 bit | of it on the wire |",
    f"|{'---|' * 12}",
)


def table() -> list[str]:
    """All models and meshes."""
    step = StepTime.fit()
    return [*HEAD, *(line for each in DEPLOYMENTS for line in rows(each, step))]


def fit_line() -> str:
    """How well the fit describes what was measured."""
    step = StepTime.fit()
    read, multiply, dense, coded = step.factors
    return (
        f"read {read:.2f}, multiply {multiply:.2f}, bf16 cache {dense:.2f}, coded cache "
        f"{coded:.2f}; mean error {step.mean_error:.0%}, largest {step.error:.0%} over "
        f"{step.steps} measured steps"
    )


if __name__ == "__main__":
    print("\n".join([fit_line(), "", *table()]))
