"""The visual KV cache of multimodal LLMs in 1 bit: pure JAX, the layer that all others use.

| to read about | begin with | then |
|---|---|---|
| codes of a tensor | `quantize`, `quantized` | `level_codes` (`range_rules`, `groups`), \
`sign_codes`, `mixed_codes`, `dense`, `error_measures` |
| codes by classes of tokens | `dictionary_codes` | `dictionary_tensor`, `token_classes`, \
`image_centres`, `normal_steps`; tables of a model: `code_tables`, `codebooks`, `dictionaries` |
| bits and products with them | `packing` | `packed_products`, `exact_einsum`, `rotation`, \
`log_scale` |
| settings | `config`, `presets` | `layer_settings`, `calibrated` |
| the cache | `cache`, `empty` | `text_bank`, `visual`, `slots`, `visibility`, `key_bias`, \
`cache_updates`, `sharing`, `accounting`, `summaries` |
| layers and heads of several kinds | `layered` | `head_groups`, `recurrent` |
| attention | `reference`, `attention` | `attention_weights`, `calibration`, `soft_cap`, `backend` |
| a pass through a model's layers | `prefill`, `decode` | `prefill_pass`, `decode_pass`, `coding`, \
`layer_step`, `pass_checks`; of several kinds: `layered_passes`, `cross_pass` |
| devices and hosts | `sharding` | `bank_parts`, `split_tensor`, `hosts` |
| files | `persistence` | `consistency`, `sliced_arrays`, `atomic_write` |
| what all of them use | `array_types`, `pytree` | `validation`, `display`, `byte_units` |
"""

from vkq_jax import summaries as summaries  # registers the short forms of caches and tensors
from vkq_jax.accounting import CacheBytes, cache_nbytes
from vkq_jax.attention import AttentionOutput
from vkq_jax.attention_weights import AttentionWeights, attention_weights, token_numbers
from vkq_jax.backend import Backend
from vkq_jax.cache import KVCache, LayerCache, VisualBank
from vkq_jax.cache_updates import append, grow, take_sequences
from vkq_jax.calibrated import CalibratedCodes, CalibratedPreset
from vkq_jax.calibration import ScoreMap
from vkq_jax.code_tables import ClassTables, CodeTables, SideTables
from vkq_jax.config import KVQuantConfig, ScoreCalibration
from vkq_jax.cross_pass import PromptPictures
from vkq_jax.decode import Decode, LayeredDecode, begin_decode
from vkq_jax.dense import Dense, DenseTensor
from vkq_jax.dictionary_codes import DictionaryCodes
from vkq_jax.dictionary_tensor import DictionaryTensor
from vkq_jax.empty import LayerSizes, empty_cache
from vkq_jax.error_measures import (
    QuantizationError,
    cosine,
    quantization_error,
    relative_squared_error,
)
from vkq_jax.key_bias import KeyBias
from vkq_jax.layer_settings import Cells, LayerGroups, PerLayer, per_head, per_layer
from vkq_jax.layered import LayeredCache, heads_of_layer
from vkq_jax.level_codes import Granularity, LevelCodes, LevelTensor
from vkq_jax.mixed_codes import MixedCodes, MixedTensor
from vkq_jax.persistence import (
    load_cache,
    load_score_map,
    load_tables,
    save_cache,
    save_score_map,
    save_tables,
)
from vkq_jax.prefill import LayeredPrefill, Prefill, begin_prefill
from vkq_jax.presets import calibrated_presets, presets, register_preset, resolve
from vkq_jax.quantize import dequantize, fake_quantize, quantize
from vkq_jax.quantized import AffineTensor, QuantizedTensor, Quantizer
from vkq_jax.range_rules import MSE, MeanMagnitude, MinMax, Quantile, RangeRule, Shrink
from vkq_jax.recurrent import RecurrentState
from vkq_jax.sharing import share_visual
from vkq_jax.sign_codes import SignCodes, SignTensor
from vkq_jax.text_bank import TextBank
from vkq_jax.token_classes import ClassMap, TokenClass
from vkq_jax.visibility import Starts, window_starts
from vkq_jax.visual import VisualSpan, visual_mask, visual_spans

__all__ = [
    "MSE",
    "AffineTensor",
    "AttentionOutput",
    "AttentionWeights",
    "Backend",
    "CacheBytes",
    "CalibratedCodes",
    "CalibratedPreset",
    "Cells",
    "ClassMap",
    "ClassTables",
    "CodeTables",
    "Decode",
    "Dense",
    "DenseTensor",
    "DictionaryCodes",
    "DictionaryTensor",
    "Granularity",
    "KVCache",
    "KVQuantConfig",
    "KeyBias",
    "LayerCache",
    "LayerGroups",
    "LayerSizes",
    "LayeredCache",
    "LayeredDecode",
    "LayeredPrefill",
    "LevelCodes",
    "LevelTensor",
    "MeanMagnitude",
    "MinMax",
    "MixedCodes",
    "MixedTensor",
    "PerLayer",
    "Prefill",
    "PromptPictures",
    "Quantile",
    "QuantizationError",
    "QuantizedTensor",
    "Quantizer",
    "RangeRule",
    "RecurrentState",
    "ScoreCalibration",
    "ScoreMap",
    "Shrink",
    "SideTables",
    "SignCodes",
    "SignTensor",
    "Starts",
    "TextBank",
    "TokenClass",
    "VisualBank",
    "VisualSpan",
    "append",
    "attention_weights",
    "begin_decode",
    "begin_prefill",
    "cache_nbytes",
    "calibrated_presets",
    "cosine",
    "dequantize",
    "empty_cache",
    "fake_quantize",
    "grow",
    "heads_of_layer",
    "load_cache",
    "load_score_map",
    "load_tables",
    "per_head",
    "per_layer",
    "presets",
    "quantization_error",
    "quantize",
    "register_preset",
    "relative_squared_error",
    "resolve",
    "save_cache",
    "save_score_map",
    "save_tables",
    "share_visual",
    "take_sequences",
    "token_numbers",
    "visual_mask",
    "visual_spans",
    "window_starts",
]
