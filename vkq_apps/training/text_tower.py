"""Pretrained text towers: a folder of Hugging Face's, or a GGUF file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.checkpoints.folder import Checkpoint
from models.checkpoints.foreign_errors import named
from models.checkpoints.hf_settings import read_json
from vkq_apps.training.gguf_files import gguf_errors, gguf_tensors, read_gguf_settings
from vkq_apps.training.tower_parts import has_parts, read_parts
from vkq_jax.messages import show_path, some

__all__ = ["TextTower", "read_tower"]

_TOKENIZER = "tokenizer.json"


@dataclasses.dataclass(frozen=True)
class TextTower:
    """A causal language model as Hugging Face's folders hold it.

    Attributes:
        config: its config.json.
        tensors: its weights by their names there, such as `model.layers.0.mlp.up_proj.weight`.
        tokenizer: the content of its tokenizer.json.
        eos, pad: the tokens that end an answer and fill rows up.
        bos: the token that opens a text; None where the tokenizer adds none.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]
    tokenizer: Mapping[str, Any]
    eos: str
    pad: str
    bos: str | None = None


def read_tower(path: Path) -> TextTower:
    """Reads a folder with config.json, safetensors or parts, and tokenizer files, or a GGUF file.

    Raises:
        ValueError: there is neither, a file is missing or is no text model's, or a package that
            GGUF files need.
    """
    if path.is_dir():
        return _read_folder(path)
    if path.is_file():
        return _read_gguf(path)
    raise ValueError(f"--text-tower: expected a folder or a GGUF file, there is no {path}")


def _read_folder(folder: Path) -> TextTower:
    missing = [name for name in ("config.json", _TOKENIZER) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"--text-tower: expected a Hugging Face folder of a text model, {folder} has no "
            f"{missing[0]}"
        )
    config = read_json(folder / "config.json")
    if "text_config" in config:
        raise ValueError(
            f"--text-tower: expected a text model, {folder} holds {config.get('model_type')!r}, "
            "which has a text tower inside: save that one by itself"
        )
    from transformers import PreTrainedTokenizerFast

    # tokenizer.json as it is: classes of their own put together some of it anew.
    with named(f"--text-tower: cannot read {show_path(folder / _TOKENIZER)}"):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    if has_parts(folder):
        return _tower(config, read_parts(folder), tokenizer)
    checkpoint = Checkpoint(folder)
    tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    return _tower(config, tensors, tokenizer)


def _read_gguf(file: Path) -> TextTower:
    config, tokenizer = read_gguf_settings(file)
    gguf_tensors(file, config)  # of the right sizes
    with gguf_errors(file):
        import transformers

        loading: Any = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype="float32", output_loading_info=True
        )
    model, loaded = loading
    # transformers draws what a file lacks at random.
    if missing := sorted(loaded["missing_keys"]):
        raise ValueError(f"--text-tower: {show_path(file)} lacks the tensors of {some(missing)}")
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    return _tower(model.config.to_dict(), tensors, tokenizer)


def _tower(config: Mapping[str, Any], tensors: Mapping[str, Any], tokenizer: Any) -> TextTower:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = {} if backend is None else json.loads(backend.to_str())
    if content.get("model", {}).get("type") != "BPE" or tokenizer.eos_token is None:
        raise ValueError(
            "--text-tower: expected a BPE tokenizer with an end-of-text token, got "
            f"{content.get('model', {}).get('type')!r} and {tokenizer.eos_token!r}"
        )
    pad = tokenizer.pad_token or tokenizer.eos_token
    opening = (content.get("post_processor") or {}).get("special_tokens") or {}
    bos = tokenizer.bos_token if tokenizer.bos_token in opening else None
    return TextTower(config, tensors, content, tokenizer.eos_token, pad, bos)
