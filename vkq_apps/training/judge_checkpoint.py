"""A LLaVA checkpoint with a pretrained text tower, before training: the parts put together.

Its vision tower is the embedded model's, its text tower the pretrained one with the rows of the
vocabulary that the recipe uses, and its projector is random.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from models.checkpoints.folder import Checkpoint
from models.loading import TINY
from vkq_apps.training.encoding import Encoding, encoding_of
from vkq_apps.training.model import ModelSize, hf_config
from vkq_apps.training.processor import save_processor, write_json
from vkq_apps.training.prompts import CHAT_TEMPLATE, IMAGE_TOKEN
from vkq_apps.training.text_tower import TextTower
from vkq_apps.training.used_vocabulary import recipe_texts, used_vocabulary
from vkq_jax.files.atomic_write import atomic_write

__all__ = ["judge_encoding", "read_digest", "write_start"]

_TABLES = ("model.embed_tokens.weight", "lm_head.weight")
_INFO = "judge.json"
_WINDOW = 1024
"""Least width of a sliding window: every layer of a judge sees the whole picture."""
_ELSEWHERE = ("architectures", "quantization_config", "dtype", "torch_dtype")
"""Fields of a tower's config.json that describe its own files."""


def write_start(tower: TextTower, folder: Path) -> None:
    """Writes the checkpoint: configuration, bfloat16 weights, processor, and a digest of the tower.

    Raises:
        ValueError: the tower's weights or tokenizer are not those of a text decoder.
    """
    tokenizer, rows = used_vocabulary(
        tower.tokenizer, recipe_texts(), tuple(dict.fromkeys((tower.eos, tower.pad)))
    )
    if len(rows) > np.iinfo(np.int16).max:
        raise ValueError(f"--text-tower: expected fewer than 32,768 used tokens, got {len(rows)}")
    text = _text_tensors(tower, rows)
    width = text["language_model.model.norm.weight"].shape[-1]
    tensors = {name: _rounded(x) for name, x in (text | _vision() | _projector(width)).items()}
    folder.mkdir(parents=True, exist_ok=True)
    _save_tokenizer(tokenizer, tower, folder)
    write_json(folder / "config.json", _config(tower, tokenizer, len(rows)))
    ends = {"eos_token_id": _id(tokenizer, tower.eos), "pad_token_id": _id(tokenizer, tower.pad)}
    write_json(folder / "generation_config.json", ends | {"do_sample": False})
    with atomic_write(folder / "model.safetensors") as part:
        save_file(tensors, part, metadata={"format": "pt"})
    known = {"tower": _digest(text, tokenizer), "eos": tower.eos, "pad": tower.pad}
    write_json(folder / _INFO, known)


def judge_encoding(folder: Path) -> Encoding:
    """How rows of training are encoded for the checkpoint that `write_start` wrote."""
    known = json.loads((folder / _INFO).read_text(encoding="utf-8"))
    return encoding_of(folder / "tokenizer.json", pad=known["pad"], eos=known["eos"])


def read_digest(folder: Path) -> str:
    """The digest of the tower in a checkpoint of `write_start`: it tells the tower from others."""
    return json.loads((folder / _INFO).read_text(encoding="utf-8"))["tower"]


def _text_tensors(tower: TextTower, rows: list[int]) -> dict[str, np.ndarray]:
    tensors = {}
    for name, tensor in tower.tensors.items():
        if name in _TABLES:
            if tensor.ndim != 2 or max(rows) >= len(tensor):
                raise ValueError(
                    f"--text-tower: expected more than {max(rows)} rows in {name}, for as many "
                    f"tokens, got an array {list(tensor.shape)}"
                )
            tensor = tensor[rows]
        tensors[f"language_model.{name}"] = tensor
    needed = [f"language_model.{name}" for name in (_TABLES[0], "model.norm.weight")]
    if missing := [name for name in needed if name not in tensors]:
        raise ValueError(
            f"--text-tower: expected weights of a decoder, got none of the name "
            f"{missing[0].removeprefix('language_model.')}"
        )
    if (shape := tensors[needed[1]].shape) != tensors[needed[0]].shape[1:]:
        raise ValueError(
            f"--text-tower: expected a norm as wide as the embedding, got {list(shape)} beside "
            f"{list(tensors[needed[0]].shape)}"
        )
    return tensors


def _vision() -> dict[str, np.ndarray]:
    checkpoint = Checkpoint(TINY)
    names = [name for name in checkpoint.tensors if name.startswith("vision_tower.")]
    return {name: checkpoint.read(name) for name in names}


def _projector(width: int) -> dict[str, np.ndarray]:
    rng, tensors = np.random.default_rng(0), {}
    for number, inputs in ((1, ModelSize().width), (2, width)):
        layer = f"multi_modal_projector.linear_{number}"
        tensors[f"{layer}.weight"] = rng.normal(size=(width, inputs)) * inputs**-0.5
        tensors[f"{layer}.bias"] = np.zeros(width)
    return tensors


def _rounded(tensor: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(tensor.astype(ml_dtypes.bfloat16))


def _config(tower: TextTower, tokenizer: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    tied = "lm_head.weight" not in tower.tensors
    ends = {
        "eos_token_id": _id(tokenizer, tower.eos),
        "pad_token_id": _id(tokenizer, tower.pad),
        "bos_token_id": None if tower.bos is None else _id(tokenizer, tower.bos),
    }
    text = {
        name: value
        for name, value in tower.config.items()
        if name not in _ELSEWHERE and not name.startswith("_")
    }
    text |= ends | {"vocab_size": vocabulary, "tie_word_embeddings": tied}
    if isinstance(text.get("sliding_window"), int):  # anything else is refused where it is read
        text["sliding_window"] = max(text["sliding_window"], _WINDOW)
    image = {"image_token_index": _id(tokenizer, IMAGE_TOKEN), "tie_word_embeddings": tied}
    return hf_config(ModelSize()) | ends | image | {"text_config": text}


def _save_tokenizer(content: Mapping[str, Any], tower: TextTower, folder: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        bos_token=tower.bos,
        eos_token=tower.eos,
        pad_token=tower.pad,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
        chat_template=CHAT_TEMPLATE,
    )
    save_processor(folder, tokenizer)


def _id(tokenizer: Mapping[str, Any], token: str) -> int:
    return next(one["id"] for one in tokenizer["added_tokens"] if one["content"] == token)


def _digest(text: Mapping[str, np.ndarray], tokenizer: Mapping[str, Any]) -> str:
    """A digest of the tokenizer and of all norms, which are small and differ between all towers."""
    digest = hashlib.sha256(json.dumps(tokenizer["model"], sort_keys=True).encode())
    for name in sorted(text):
        if name.endswith("norm.weight"):
            digest.update(name.encode() + _rounded(text[name]).tobytes())
    return digest.hexdigest()[:16]
