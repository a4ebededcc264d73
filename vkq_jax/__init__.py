"""The visual KV cache of multimodal LLMs in 1 bit: pure JAX, the layer that all others use."""

from vkq_jax.calibration import ScoreCalibration
from vkq_jax.config import KVQuantConfig
from vkq_jax.dense import Dense, DenseTensor
from vkq_jax.error_measures import (
    QuantizationError,
    cosine,
    quantization_error,
    relative_squared_error,
)
from vkq_jax.level_codes import Granularity, LevelCodes, LevelTensor
from vkq_jax.presets import presets, resolve
from vkq_jax.quantize import dequantize, fake_quantize, quantize
from vkq_jax.quantized import AffineTensor, CodeFamily, QuantizedTensor
from vkq_jax.range_rules import MSE, MinMax, Quantile, RangeRule, Shrink
from vkq_jax.sign_codes import SignCodes, SignTensor

__all__ = [
    "MSE",
    "AffineTensor",
    "CodeFamily",
    "Dense",
    "DenseTensor",
    "Granularity",
    "KVQuantConfig",
    "LevelCodes",
    "LevelTensor",
    "MinMax",
    "Quantile",
    "QuantizationError",
    "QuantizedTensor",
    "RangeRule",
    "ScoreCalibration",
    "Shrink",
    "SignCodes",
    "SignTensor",
    "cosine",
    "dequantize",
    "fake_quantize",
    "presets",
    "quantization_error",
    "quantize",
    "relative_squared_error",
    "resolve",
]
