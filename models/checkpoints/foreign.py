"""Checkpoints that cannot be loaded: how to know them, and what to do with them."""

import re
from collections.abc import Collection
from pathlib import Path

from models.messages import some

__all__ = ["recognise_files", "recognise_model_type", "recognise_names"]

_ADAPTER = "a LoRA adapter: merge it into its base model (peft's merge_and_unload) and save that"
_ORIGINAL = "the original LLaVA layout: take its `-hf` checkpoint"
_CONVERT = f"{_ORIGINAL}, or convert it (transformers' convert_llava_weights_to_hf.py)"
_TEXT_ONLY = "a text-only model: take one that sees, such as llava-hf/llava-1.5-7b-hf"

# Found in any name. The first that matches applies.
_MARKS = (
    (r"\.lora_[AB]\b|\.lora_(down|up)\b|^base_model\.model\.", _ADAPTER),
    (
        r"\.(qweight|qzeros|scales|SCB|absmax|quant_map|weight_packed|weight_scale)$",
        "quantized weights: take the checkpoint in 16 or 32 bits",
    ),
    (r"\bmm_projector\.", _CONVERT),
    (r"^(model\.)?image_newline$", "a LLaVA-NeXT or LLaVA-OneVision model, not LLaVA-1.5"),
    (r"^(model\.)?visual\.", "a Qwen-VL or GLM-V model, not LLaVA-1.5"),
    (r"^(model\.)?connector\.", "an Idefics or SmolVLM model"),
    (r"\bmm_input_projection", "a Gemma 3 model, not LLaVA-1.5"),
)
# Prefixes that wrappers of training put before all names.
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "model.module.")
_SEES = re.compile(r"vision|visual|image|projector|patch_embed|clip|siglip", re.IGNORECASE)
_READS = re.compile(r"\bembed_tokens\.|\bwte\.|\blm_head\.|\.self_attn\.|\.attention\.")

# By the files of a folder.
_FILES = (
    ("adapter_config.json", f"is {_ADAPTER}"),
    ("adapter_model.*", f"is {_ADAPTER}"),
    ("consolidated*", "has weights only in Mistral's or Meta's own layout: take the one converted"),
    ("*.gguf", "has weights only as GGUF: take the checkpoint in safetensors"),
)
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


def recognise_names(names: Collection[str]) -> str | None:
    """A guess at the checkpoint that has these tensors, with what to do; None: there is none."""
    for wrapper in _WRAPPERS:
        if names and all(name.startswith(wrapper) for name in names):
            return f"weights of a wrapped module: save the inner module's, without `{wrapper}`"
    for pattern, meaning in _MARKS:
        mark = re.compile(pattern)
        if any(mark.search(name) for name in names):
            return meaning
    if any(map(_READS.search, names)) and not any(map(_SEES.search, names)):
        return _TEXT_ONLY
    return None


def recognise_model_type(model_type: object) -> str | None:
    """The kind of model that has this `model_type`, with what to do; None: it is not known."""
    if model_type in ("llava_llama", "llava_mistral", "llava_mpt"):
        return _ORIGINAL
    if model_type in ("llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gpt2", "phi3"):
        return _TEXT_ONLY
    return None


def recognise_files(folder: Path) -> str | None:
    """The content of a folder without loadable weights, as the end of a sentence."""
    for pattern, meaning in _FILES:
        if any(folder.glob(pattern)):
            return meaning
    pickled = sorted(file.name for pattern in _PICKLED for file in folder.glob(pattern))
    if pickled:
        return (
            f"has weights only as {some(pickled)}; "
            f"convert them to safetensors (transformers' save_pretrained does)"
        )
    return None
