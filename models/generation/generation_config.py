"""The settings of a checkpoint's generation_config.json for choosing tokens."""

import dataclasses
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

# Settings of transformers that change tokens and are not implemented here, and the values at which
# they change nothing.
NOT_HONOURED: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0, 0.0),
    "dola_layers": (),
    "constraints": (),
    "force_words_ids": ([],),
    "guidance_scale": (1, 1.0),
    "encoder_repetition_penalty": (1, 1.0),
    "encoder_no_repeat_ngram_size": (0,),
    "exponential_decay_length_penalty": (),
    "remove_invalid_values": (False,),
    "top_h": (),
    "watermarking_config": (),
    "token_healing": (False,),
    "stop_strings": ([],),
    "max_time": (),
}

# Settings of transformers that change no token of a greedy or a sampled answer, whose length the
# caller gives; eos_token_id is `models.loading`'s.
_OTHERS = """
_commit_hash _from_model_config assistant_confidence_threshold assistant_early_exit
assistant_ensemble_weight assistant_lookbehind bos_token_id cache_config cache_implementation
compile_config continuous_batching_config decoder_start_token_id disable_compile
diversity_penalty do_sample early_stopping eos_token_id is_assistant length_penalty low_memory
max_cache_len max_length max_matching_ngram_size max_new_tokens num_assistant_tokens
num_assistant_tokens_schedule output_attentions output_hidden_states output_logits
output_scores pad_token_id prefill_chunk_size prompt_lookup_num_tokens renormalize_logits
return_dict_in_generate return_legacy_cache speculation_type target_lookbehind torch_dtype
transformers_version trust_remote_code use_cache use_mtp
"""
CHANGES_NOTHING = frozenset(_OTHERS.split())


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
        unknown = [
            name
            for name, value in content.items()
            if value and name not in {*READ, *NOT_HONOURED, *CHANGES_NOTHING}
        ]
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
