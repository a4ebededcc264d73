"""Other spellings of a drawn config.json: those of transformers 4, and what files leave out."""

import copy
import random
from collections.abc import Callable
from typing import Any

from tests.support.draws.texts import FULL, SLIDING

__all__ = ["older_rope", "respelled"]

type Config = dict[str, Any]


def older_rope(config: Config, key: str = "rope_type") -> Config | None:
    """RoPE in the names of transformers 4, its kind by `key`; None where they cannot say it."""
    config = copy.deepcopy(config)
    text = config["text_config"]
    if config["model_type"].startswith("gemma4"):  # which is younger
        return None
    rope = text.pop("rope_parameters", None)
    if rope is None:
        return None
    if set(rope) == {FULL, SLIDING}:  # Gemma 3
        rope, local = rope[FULL], rope[SLIDING]
        if (
            local["rope_type"] != "default" or key == "type"
        ):  # which transformers does not find here
            return None
        text["rope_local_base_freq"] = local["rope_theta"]
    if "rope_type" not in rope:
        return None
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in rope:
            text[name] = rope.pop(name)
    kind = rope.pop("rope_type")
    if kind == "default" and "mrope_section" in rope and key == "type":
        kind = "mrope"
    if rope or kind != "default":
        text["rope_scaling"] = rope | {key: kind}
    return config


def _with_older_rope(rng: random.Random, config: Config) -> Config | None:
    found = older_rope(config, rng.choice(("rope_type", "type")))
    if found is not None and "rope_scaling" not in found["text_config"] and rng.random() < 0.5:
        found["text_config"]["rope_scaling"] = None
    return found


def _with_older_tower_rope(rng: random.Random, config: Config) -> Config | None:
    rope = config["vision_config"].pop("rope_parameters", None)
    if rope is None:
        return None
    config["vision_config"]["rope_theta"] = rope["rope_theta"]
    return config


def _any(rng: random.Random, config: Config) -> tuple[Config, str]:
    """An object of the file, and one of its fields."""
    at = rng.choice((config, config["text_config"], config["vision_config"]))
    return at, rng.choice([name for name in at if name != "model_type"])


def _without_a_field(rng: random.Random, config: Config) -> Config | None:
    at, name = _any(rng, config)
    # Heads that do not divide the default width are refused here; transformers rounds down.
    if name in ("text_config", "vision_config", "hidden_size", "num_attention_heads"):
        return None
    del at[name]
    return config


def _with_null(rng: random.Random, config: Config) -> Config:
    at = rng.choice((config, config["text_config"]))
    names = ["num_key_value_heads", "head_dim", "layer_types", "sliding_window"]
    names += ["vision_feature_layer", "eos_token_id", "tie_word_embeddings"]
    if not config["model_type"].startswith("gemma4"):  # transformers takes its RoPE away by this
        names.append("rope_scaling")
    at[rng.choice(names)] = None
    return config


def _with_whole_numbers(rng: random.Random, config: Config) -> Config:
    """JSON that was written by others than Python has 8 for 8.0, and 16.0 for 16 never."""
    return _whole(config)


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _whole(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _with_stated_head_dim(rng: random.Random, config: Config) -> Config | None:
    """Files state what follows from other fields, also where transformers' class has no field."""
    text = config["text_config"]
    if text.get("head_dim") is not None or text["hidden_size"] % text["num_attention_heads"]:
        return None
    text["head_dim"] = text["hidden_size"] // text["num_attention_heads"]
    return config


def _with_a_tied_head(rng: random.Random, config: Config) -> Config:
    for at in (config, config["text_config"]):
        match rng.randrange(3):
            case 0:
                at.pop("tie_word_embeddings", None)
            case 1:
                at["tie_word_embeddings"] = rng.random() < 0.5
    return config


def _with_a_period(rng: random.Random, config: Config) -> Config | None:
    text = config["text_config"]
    if "sliding_window" not in text:
        return None
    text.pop("layer_types", None)
    text["sliding_window_pattern"] = rng.choice((1, 2, 3, 6))
    return config


def _with_words_of_old_files(rng: random.Random, config: Config) -> Config:
    """Fields that transformers 4 wrote into every object, and that mean nothing."""
    words: Config = {
        "torch_dtype": rng.choice(("float16", "bfloat16", "float32")),
        "dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "_name_or_path": "x/y",
        "_attn_implementation_autoset": True,
        "architectures": None,
        "use_cache": True,
        "output_attentions": False,
        "output_hidden_states": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "return_dict": True,
        "use_bfloat16": False,
        "pruned_heads": {},
        "chunk_size_feed_forward": 0,
        "num_beams": 1,
        "temperature": 1.0,
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
        "label2id": {"LABEL_0": 0, "LABEL_1": 1},
        "add_cross_attention": False,
        "is_encoder_decoder": False,
    }
    for at in (config, config["text_config"], config["vision_config"]):
        at |= {name: words[name] for name in rng.sample(sorted(words), 4)}
    return config


def _with_other_token_names(rng: random.Random, config: Config) -> Config:
    """Ids of tokens end in `_id` or in `_index`; heads and experts have two names, too."""
    ends = {"_token_id": "_token_index", "_token_index": "_token_id"}
    for name in [name for name in config if "_token_i" in name]:
        end = name[name.index("_token_i") :]
        config[name.replace(end, ends[end])] = config.pop(name)
    return config


def _with_other_names(rng: random.Random, config: Config) -> Config:
    """Some classes of transformers know a field of theirs by the name that others have."""
    names = {
        "num_heads": "num_attention_heads",
        "depth": "num_hidden_layers",
        "num_experts": "num_local_experts",
        "n_routed_experts": "num_local_experts",
        "hidden_act": "hidden_activation",
        "embed_dim": "hidden_size",
    }
    for at in (config["text_config"], config["vision_config"]):
        for name in sorted(set(names) & set(at)):
            other = names[name]
            if rng.random() < 0.5 and other not in at:
                at[other] = at.pop(name)
    return config


def _flat(rng: random.Random, config: Config) -> Config | None:
    """First files of Qwen2-VL and PaddleOCR-VL have the decoder's fields beside the tower."""
    if config["model_type"] not in ("qwen2_vl", "qwen2_5_vl", "paddleocr_vl"):
        return None
    older = older_rope(config, "type")
    if older is None:
        return None
    text = older.pop("text_config")
    del text["model_type"]
    return {**older, **text, "text_config": None} if rng.random() < 0.2 else older | text


_SPELLINGS: tuple[Callable[[random.Random, Config], Config | None], ...] = (
    *(_with_older_rope, _with_older_tower_rope, _without_a_field, _without_a_field, _with_null),
    *(_with_whole_numbers, _with_a_tied_head, _with_a_period, _with_words_of_old_files, _flat),
    *(_with_other_token_names, _with_other_names, _with_stated_head_dim),
)


def respelled(rng: random.Random, config: Config) -> Config:
    """The file changed in one way or several; it may mean another model now, or none."""
    for change in rng.sample(_SPELLINGS, rng.randint(1, 3)):
        if config.get("text_config") and config.get("vision_config"):
            config = change(rng, copy.deepcopy(config)) or config
    return config
