"""The fused kernel's results over random banks, and how far they are from float32."""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp

from pallas_kernels.attention.banks import Banks
from pallas_kernels.attention.fused import (
    fused_attention,
    keeps_scores,
    packed_starts,
    score_range,
)
from pallas_kernels.attention.kernel_spec import TuningConfig
from pallas_kernels.attention.key_bias import bias_share
from pallas_kernels.attention.launch import Launch
from vkq_apps.bench.cases import Calibration, Case
from vkq_apps.bench.kernel_banks import Seen, random_banks
from vkq_jax import slots
from vkq_jax.attention.post_scaled import bias_scores, per_kv_head
from vkq_jax.cache.key_bias import KeyBias
from vkq_jax.cache.text_bank import TextBank
from vkq_jax.codes.code_tables import CodeTables
from vkq_jax.settings.config import ScoreCalibration
from vkq_jax.settings.score_maps import ScoreMap, calibrate, score_map

__all__ = ["attend", "error"]


_CALIBRATION = ScoreCalibration()


def attend(
    calibration: Calibration | None,
    launch: Launch,
    tuning: TuningConfig | None,
    query: jax.Array,
    banks: Banks,
    visible: Seen,
    starts: Seen,
    tables: CodeTables | None,
    bias: KeyBias | None,
) -> tuple[jax.Array, jax.Array]:
    """Output and log-sum-exp by the kernel."""
    layer, mapped, in_launch = jnp.int32(0), None, None
    share = None
    if bias is not None and banks.packed is not None:
        share = bias_share(query, banks.packed, layer, bias)
    if calibration == "per step":
        assert banks.packed is not None
        if keeps_scores(banks, query.shape, tuning):
            in_launch = _CALIBRATION
        else:
            start = starts.get("packed")
            found = score_range(query, banks.packed, layer, launch, tuning, start, share)
            mapped, _ = score_map(*found, _CALIBRATION)
    elif calibration == "static":
        mapped = _static_map(query.shape[:-1])
    begins = dict(starts)
    if banks.packed is not None and "packed" in starts:
        begins |= packed_starts(banks.packed, 0, begins.pop("packed"))
    output, logsumexp, *_ = fused_attention(
        query,
        visible,
        banks,
        layer,
        launch,
        tuning,
        mapped,
        starts=begins,
        calibration=in_launch,
        tables=jax.tree.map(lambda x: x[None], tables),
        bias=share,
    )
    return output, logsumexp


def _share(query: jax.Array, banks: Banks, bias: KeyBias | None) -> jax.Array | None:
    """The share of a key bias in the scores of the packed bank's slots [B, K, Q, S]."""
    if bias is None or banks.packed is None:
        return None
    bias = dataclasses.replace(bias, waves=None)  # in another way than the kernel
    return bias_scores(query, banks.packed.of_layer(0), bias)


def _static_map(rows: tuple[int, ...]) -> ScoreMap:
    """A map of scores, as if it had been made before."""
    return ScoreMap(jnp.full(rows, 0.9), jnp.full(rows, -0.25))


def reference(
    calibration: Calibration | None,
    query: jax.Array,
    banks: Banks,
    visible: Seen,
    starts: Seen,
    tables: CodeTables | None,
    bias: KeyBias | None,
) -> tuple[jax.Array, jax.Array]:
    """Output and log-sum-exp in float32, from the codes' own arithmetic in XLA."""

    def seen(name, end, scores):
        start = starts.get(name, jnp.zeros_like(end))
        if name == "packed" and (bank := banks.packed) and bank.class_map is not None:
            visible = bank.of_layer(0).visible(start, end, scores.shape[-1])
        else:
            visible = slots.visible(start, end, scores.shape[-1])[:, None]
        return per_kv_head(visible, scores)

    with jax.default_matmul_precision("highest"):
        parts, values, masks = [], [], []
        tensors = jax.tree.map(
            lambda x: x[0], (banks.dense, banks.packed and (banks.packed.key, banks.packed.value))
        )
        for name, bank in tensors[0].items():
            key, value = TextBank(
                bank.key, bank.value, visible[name][:, 0], None, bank.key_scale, bank.value_scale
            ).dequantize()
            parts.append(jnp.einsum("bkqh,bksh->bkqs", query, key))
            values.append(functools.partial(jnp.einsum, "bksh,bkqs->bkqh", value))
            masks.append(seen(name, visible[name], parts[-1]))
        if banks.packed is not None:
            key, value = (side.plain() for side in tensors[1])
            of_key, of_value = (tables.key, tables.value) if tables else (None, None)
            parts.append(key.scores(query, of_key))
            if (share := _share(query, banks, bias)) is not None:
                parts[-1] = parts[-1] + share
            values.append(lambda weights: value.weighted_sum(weights, of_value))
            masks.append(seen("packed", banks.packed.length[:, None], parts[-1]))
            if calibration == "per step":
                parts[-1] = calibrate(parts[-1], masks[-1], _CALIBRATION)[0]
            elif calibration == "static":
                parts[-1] = _static_map(query.shape[:-1]).apply(parts[-1])
        logits = [jnp.where(mask, x, -jnp.inf) for x, mask in zip(parts, masks, strict=True)]
        total = jax.nn.logsumexp(jnp.concatenate(logits, -1), -1)
        safe = jnp.where(jnp.isfinite(total), total, 0.0)[..., None]
        weighted = [f(jnp.exp(x - safe)) for f, x in zip(values, logits, strict=True)]
        return functools.reduce(jnp.add, weighted), total


def error(
    case: Case, launch: Launch, tuning: TuningConfig | None, *, ragged: bool
) -> dict[str, float]:
    """Relative error of the output and absolute one of the log-sum-exp against float32.

    Small ragged cases get their inputs and their oracle on the CPU: a GPU only runs the kernel,
    which is quicker, and all that `compute-sanitizer` has to follow.
    """
    case = dataclasses.replace(case, batch=min(case.batch, 2))
    with jax.default_device(jax.devices("cpu")[0] if ragged else None):
        banks = random_banks(case, seed=time.time_ns() % 2**31, ragged=ragged)
        shape = (case.batch, case.kv_heads, case.queries, case.head_dim)
        query = 2 * case.head_dim**-0.5 * jax.random.normal(jax.random.key(5), shape)
        expected, expected_logsumexp = jax.jit(functools.partial(reference, case.calibration))(
            query, *banks
        )
    inputs = jax.device_put((query, *banks), jax.devices()[0])
    # Small cases are not worth a search for the fastest products beside the kernel.
    options = {"xla_gpu_autotune_level": 0} if ragged else {}
    computed = functools.partial(attend, case.calibration, launch, tuning)
    output, logsumexp = jax.jit(computed, compiler_options=options)(*inputs)
    expected, expected_logsumexp = jax.device_put((expected, expected_logsumexp), jax.devices()[0])
    seen = jnp.isfinite(expected_logsumexp)
    if not bool(jnp.all(jnp.isfinite(output)) & jnp.all(jnp.isfinite(logsumexp) == seen)):
        raise AssertionError("not finite, or finite where nothing is visible")
    difference = jnp.where(seen[..., None], output - expected, 0.0)
    norm = jnp.linalg.norm(jnp.where(seen[..., None], expected, 0.0))
    apart = jnp.where(seen, logsumexp - expected_logsumexp, 0.0)
    return {
        "relative_error": float(jnp.linalg.norm(difference) / norm),
        "logsumexp_error": float(jnp.abs(apart).max()),
    }
