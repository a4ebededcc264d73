"""Checkpoints that cannot be loaded: how to know them, and what to do with them."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from vkq_jax.messages import show, show_path, some

__all__ = [
    "check_plain_weights",
    "unsupported_files_reason",
    "unsupported_model_type_reason",
    "unsupported_weights_reason",
]

_ADAPTER = "a LoRA adapter: merge it into its base model (peft's merge_and_unload) and save that"
_ORIGINAL = "the original LLaVA layout: take its `-hf` checkpoint"
_CONVERT = f"{_ORIGINAL}, or convert it (transformers' convert_llava_weights_to_hf.py)"
_CONVERTED = "InternVL's own layout: take its `-hf` checkpoint"
_QUANTIZED = "quantized weights: take the checkpoint in 16 or 32 bits"
_TEXT_ONLY = "a text-only model: take one that sees, such as llava-hf/llava-1.5-7b-hf"

# Found in any name. The first that matches applies.
_MARKS = (
    (
        r"\.lora_[AB]\b|\.lora_(down|up)\b|^base_model\.model\.|\.modules_to_save\.|\.base_layer\.",
        _ADAPTER,
    ),
    (
        r"\.(qweight|qzeros|scales|SCB|absmax|quant_map|W_q|weight_(packed|blocks|scales?)|"
        r"weight_scale_(inv|2))$",
        _QUANTIZED,
    ),
    (r"\bmm_projector\.", _CONVERT),
)
# Found in names that the model of config.json does not take: they tell another family.
_FAMILY_MARKS = (
    (r"^(model\.)?image_newline$", "a LLaVA-NeXT or LLaVA-OneVision model"),
    (r"^(model\.)?visual\.", "a Qwen-VL or GLM-V model"),
    (r"^(model\.)?connector\.", "an Idefics or SmolVLM model"),
    (r"\bmm_input_projection", "a Gemma 3 model"),
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
    ("*.onnx", "has weights only as ONNX: take the checkpoint in safetensors"),
    (
        "*.distcp",
        "has weights only as parts of a training in PyTorch: merge them, and save safetensors",
    ),
)
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


_TEXT_TYPES = (
    *("llama", "mistral", "ministral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gpt2"),
    *("phi", "phi3", "qwen2_moe", "qwen3_moe", "gpt_oss", "granite", "cohere", "cohere2", "glm4"),
    *("olmo2", "smollm3", "deepseek_v3"),
)


def check_plain_weights(folder: Path, content: Mapping[str, Any]) -> None:
    """Checks that a checkpoint's weights are all there is, and not quantized, by its small files.

    Raises:
        NotImplementedError: config.json says that the weights are quantized.
        ValueError: an adapter lies beside the weights, which would be left out.
    """
    for where in ("", "text_config", "vision_config"):
        inner = content.get(where) if where else content
        for name in ("quantization_config", "compression_config", "quantization"):
            found = inner.get(name) if isinstance(inner, Mapping) else None
            if found:
                method = found.get("quant_method") if isinstance(found, Mapping) else None
                by = f" by {show(method)}" if method else ""
                raise NotImplementedError(
                    f"{show_path(folder / 'config.json')}: {where and f'{where}.'}{name}: expected "
                    f"weights in 16 or 32 bits, got ones that are quantized{by}: take the "
                    "checkpoint that they were made of"
                )
    if (folder / "adapter_config.json").is_file() and any(folder.glob("model*.safetensors*")):
        raise ValueError(f"{show_path(folder)} has beside its weights {_ADAPTER}")


def unsupported_weights_reason(
    dtypes: Mapping[str, str], unexpected: Collection[str]
) -> str | None:
    """A guess at the checkpoint whose tensors have these names and dtypes, with what to do.

    Args:
        dtypes: of all stored tensors, by name.
        unexpected: names that the model does not take.

    Returns:
        The end of the sentence "this looks like ..."; None: there is no guess.
    """
    names = dtypes.keys()
    for wrapper in _WRAPPERS:
        if names and all(name.startswith(wrapper) for name in names):
            return f"weights of a wrapped module: save the inner module's, without `{wrapper}`"
    for marks, among in ((_MARKS, names), (_FAMILY_MARKS, unexpected)):
        for pattern, meaning in marks:
            if any(re.search(pattern, name) for name in among):
                return meaning
    if any(
        name.endswith(".weight") and dtype[:2] in ("F8", "F4", "I8", "U8")
        for name, dtype in dtypes.items()
    ):
        return _QUANTIZED
    if any(map(_READS.search, names)) and not any(map(_SEES.search, names)):
        return _TEXT_ONLY
    return None


def unsupported_model_type_reason(model_type: object) -> str | None:
    """The kind of model that has this `model_type`, with what to do; None: it is not known."""
    if model_type in ("llava_llama", "llava_mistral", "llava_mpt", "llava_qwen"):
        return _ORIGINAL
    if model_type == "internvl_chat":
        return _CONVERTED
    if model_type in _TEXT_TYPES or (isinstance(model_type, str) and model_type.endswith("_text")):
        return _TEXT_ONLY
    return None


def unsupported_files_reason(folder: Path) -> str | None:
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
