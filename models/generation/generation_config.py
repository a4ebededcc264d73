"""The settings of a checkpoint's generation_config.json for choosing tokens."""

import dataclasses
import itertools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.checkpoints.hf_settings import read_json
from models.sampling import Sampling
from vkq_jax.messages import show, show_name, show_path

__all__ = ["read_sampling"]

READ = tuple(field.name for field in dataclasses.fields(Sampling))
_TOP_K_WHEN_SAMPLING = 50  # of transformers, where a checkpoint samples without saying

# Settings of transformers that are not implemented here, and the values at which they ask for
# nothing: those of its own defaults.
NOT_HONOURED: Mapping[str, tuple[Any, ...]] = {
    # Search over several answers.
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "early_stopping": (False,),
    "length_penalty": (1.0,),
    "diversity_penalty": (0.0,),
    "constraints": (),
    "force_words_ids": ([],),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    # Logits, and the end of an answer.
    "guidance_scale": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "exponential_decay_length_penalty": (),
    "remove_invalid_values": (False,),
    "top_h": (),
    "watermarking_config": (),
    "token_healing": (False,),
    "stop_strings": ([],),
    "max_time": (),
    # Decoding with an assistant. It is faster, and with an ensemble's weight its tokens differ.
    "is_assistant": (False,),
    "use_mtp": (False,),
    "speculation_type": (),
    "prompt_lookup_num_tokens": (),
    "max_matching_ngram_size": (2,),
    "assistant_early_exit": (),
    "assistant_ensemble_weight": (),
    "assistant_confidence_threshold": (0.4,),
    "assistant_lookbehind": (10,),
    "target_lookbehind": (10,),
    "num_assistant_tokens": (5, 20),  # of transformers 4 and 5
    "num_assistant_tokens_schedule": ("constant", "heuristic"),
    # The cache: only its placement and its shapes change no token.
    "cache_implementation": (
        "dynamic",
        "static",
        "offloaded",
        "offloaded_static",
        "offloaded_hybrid",
        "offloaded_hybrid_chunked",
        "hybrid",
        "hybrid_chunked",
        "sliding_window",
        "paged",
    ),
}

# Settings of transformers that change no token of an answer, with a reason for each group.
CHANGES_NOTHING: Mapping[str, tuple[str, ...]] = {
    "the caller of `generate` gives the length": ("max_length", "max_new_tokens"),
    "another reader honours it": ("do_sample", "eos_token_id"),
    "an answer of a decoder neither begins with this token nor is padded with it": (
        "bos_token_id",
        "decoder_start_token_id",
        "pad_token_id",
    ),
    "it adds one number to all logits of a step": ("renormalize_logits",),
    "it says what transformers' `generate` returns beside tokens": (
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "output_scores",
        "return_dict_in_generate",
        "return_legacy_cache",
    ),
    "it says how transformers computes the same tokens": (
        "cache_config",
        "compile_config",
        "continuous_batching_config",
        "disable_compile",
        "low_memory",
        "max_cache_len",
        "prefill_chunk_size",
        "use_cache",
    ),
    "it describes the file": (
        "_commit_hash",
        "_from_model_config",
        "torch_dtype",
        "transformers_version",
        "trust_remote_code",
    ),
}
KNOWN = frozenset({*READ, *NOT_HONOURED, *itertools.chain(*CHANGES_NOTHING.values())})


def read_sampling(folder: Path, config: Mapping[str, Any], vocab_size: int) -> Sampling:
    """A checkpoint's settings; those that are not implemented or unknown are named in one warning.

    Args:
        folder: the checkpoint's. Without a generation_config.json the settings are those of
            config.json, where files of transformers 4 may have them.
        config: the object in config.json.
        vocab_size: of the model.

    Raises:
        ValueError: a setting of a wrong type or outside its range.
    """
    file = folder / "generation_config.json"
    unknown: list[str] = []
    if file.is_file():
        content = read_json(file)
        unknown = [name for name, value in content.items() if value and name not in KNOWN]
    else:
        file, text = folder / "config.json", config.get("text_config")
        outer = {name: value for name, value in config.items() if value is not None}
        content = (text if isinstance(text, dict) else {}) | outer
    found = {name: content[name] for name in READ if content.get(name) is not None}
    do_sample = content.get("do_sample")
    if not isinstance(do_sample, bool | None):
        got = show(do_sample)
        raise ValueError(f"{show_path(file)}: do_sample must be true or false, got {got}")
    if do_sample:
        found = {"temperature": 1.0, "top_k": _TOP_K_WHEN_SAMPLING} | found
    try:
        sampling = Sampling(**found)
        sampling.check_vocabulary(vocab_size)
        if do_sample and sampling.greedy:
            raise ValueError(
                "do_sample is true and temperature is 0: expected a temperature above 0 to sample, "
                "or do_sample false to decode greedily"
            )
    except ValueError as error:
        raise ValueError(f"{show_path(file)}: {error}") from error
    active = [
        name
        for name, harmless in NOT_HONOURED.items()
        if content.get(name) is not None and content[name] not in harmless
    ]
    others = [f"{show_name(name, 40)}={show(content[name])[:20]}" for name in (*active, *unknown)]
    if others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        warnings.warn(
            f"{show_path(file)}: not implemented here and not honoured: "
            f"{', '.join(others[:5])}{more}",
            stacklevel=2,
        )
    return sampling if do_sample else dataclasses.replace(sampling, temperature=None)
