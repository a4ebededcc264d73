"""The visual KV cache of multimodal LLMs in 1 bit: pure JAX, the layer that all others use.

A folder imports only from the folders above it in this table; all of them use the modules of the
last row.

| folder | holds | begin with | then |
|---|---|---|---|
| `bits` | packed words and products with them | `packing` | `packed_products`, `exact_einsum`, \
`rotation`, `log_scale` |
| `codes` | codes of a tensor | `quantize`, `quantized` | `level_codes` (`range_rules`, `groups`), \
`sign_codes`, `mixed_codes`, `dense`, `error_measures`; by classes of tokens: `dictionary_codes`, \
`dictionary_centring`, `dictionary_encoder`, `dictionary_tensor`, `token_classes`, \
`image_centres`, `normal_steps`; tables of a model: `code_tables`, `codebooks`, `fitting` |
| `settings` | what is chosen | `config`, `presets` | `layer_settings`, `layer_groups`, \
`calibrated`, `score_maps` |
| `cache` | the cache | `kv_cache`, `empty` | `visual_bank`, `text_bank`, `visual`, \
`visibility`, `key_bias`, \
`updates`, `sharing`, `accounting`, `summaries`; layers and heads of several kinds: `layered`, \
`any_cache`, `head_groups`, `recurrent`; split over devices: `split_tensor` |
| `attention` | attention over a cache | `reference`, `post_scaled` | `attention_weights`, \
`last_queries`, `soft_cap`, `query_checks`, `backend` |
| `passes` | a pass through the layers | `prefill`, `decode` | `prefill_pass`, `decode_pass`, \
`coding`, `joined_codes`, `layer_step`, `pass_checks`; of several kinds: `layered_passes`, \
`cross_pass` |
| `sharding` | devices and hosts | `specs` | `bank_parts`, `hosts` |
| `files` | caches and tables in files | `persistence` | `stored_form`, `consistency`, \
`sliced_arrays`, `atomic_write`, `regular_file` |
| | for all of them | `array_types`, `pytree` | `arguments`, `validation`, `structure`, \
`annotations`, `messages`, `display`, `byte_units`, `slots` |
"""

from vkq_jax.attention.attention_weights import AttentionWeights, attention_weights, token_numbers
from vkq_jax.attention.backend import Backend
from vkq_jax.attention.post_scaled import AttentionOutput
from vkq_jax.cache import summaries as summaries  # registers the short forms of caches and tensors
from vkq_jax.cache.accounting import CacheBytes, cache_nbytes
from vkq_jax.cache.any_cache import heads_of_layer
from vkq_jax.cache.empty import LayerSizes, empty_cache
from vkq_jax.cache.key_bias import KeyBias
from vkq_jax.cache.kv_cache import KVCache, LayerCache
from vkq_jax.cache.layered import LayeredCache
from vkq_jax.cache.recurrent import RecurrentState
from vkq_jax.cache.sharing import share_visual
from vkq_jax.cache.text_bank import TextBank
from vkq_jax.cache.updates import append, grow, take_sequences
from vkq_jax.cache.visibility import Starts, window_starts
from vkq_jax.cache.visual import VisualSpan, visual_mask, visual_spans
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.code_tables import ClassTables, CodeTables, SideTables
from vkq_jax.codes.dense import Dense, DenseTensor
from vkq_jax.codes.dictionary_codes import DictionaryCodes
from vkq_jax.codes.dictionary_tensor import DictionaryTensor
from vkq_jax.codes.error_measures import (
    QuantizationError,
    cosine,
    quantization_error,
    relative_squared_error,
)
from vkq_jax.codes.level_codes import Granularity, LevelCodes, LevelTensor
from vkq_jax.codes.mixed_codes import MixedCodes, MixedTensor
from vkq_jax.codes.quantize import dequantize, fake_quantize, quantize
from vkq_jax.codes.quantized import AffineTensor, QuantizedTensor, Quantizer
from vkq_jax.codes.range_rules import MSE, MeanMagnitude, MinMax, Quantile, RangeRule, Shrink
from vkq_jax.codes.sign_codes import SignCodes, SignTensor
from vkq_jax.codes.token_classes import ClassMap, TokenClass
from vkq_jax.files.persistence import (
    load_cache,
    load_score_map,
    load_tables,
    save_cache,
    save_score_map,
    save_tables,
)
from vkq_jax.passes.cross_pass import PromptPictures
from vkq_jax.passes.decode import Decode, LayeredDecode, begin_decode
from vkq_jax.passes.prefill import LayeredPrefill, Prefill, begin_prefill
from vkq_jax.settings.calibrated import CalibratedCodes, CalibratedPreset
from vkq_jax.settings.config import KVQuantConfig, ScoreCalibration
from vkq_jax.settings.layer_groups import Cells, LayerGroups
from vkq_jax.settings.layer_settings import PerLayer, per_head, per_layer
from vkq_jax.settings.presets import calibrated_presets, presets, register_preset, resolve
from vkq_jax.settings.score_maps import ScoreMap

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
