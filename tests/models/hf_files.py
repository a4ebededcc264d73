"""Checkpoint folders as Hugging Face writes them, made without PyTorch."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

IMAGE_TOKEN = 12
VISION_LAYERS, TEXT_LAYERS = 3, 2
NUM_FEATURES = 4
WIDTH, MLP, VISION_WIDTH, VISION_MLP, VOCAB, KV = 16, 24, 8, 12, 20, 8


def config_json(*, vision=None, text=None, **changes) -> dict:
    """A config.json of transformers 4: 2 of 3 vision layers are needed."""
    vision_config = {
        "model_type": "clip_vision_model",
        "hidden_size": VISION_WIDTH,
        "intermediate_size": VISION_MLP,
        "num_hidden_layers": VISION_LAYERS,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "projection_dim": 8,
    }
    text_config = {
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": MLP,
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rope_theta": 5000.0,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "float16",
    }
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": IMAGE_TOKEN,
        "ignore_index": -100,
        "pad_token_id": 3,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vision_config": vision_config | (vision or {}),
        "text_config": text_config | (text or {}),
        **changes,
    }


def shapes() -> dict[str, tuple[int, ...]]:
    """Every weight that transformers 4 stores for `config_json()`."""
    found = {
        "language_model.model.embed_tokens.weight": (VOCAB, WIDTH),
        "language_model.model.norm.weight": (WIDTH,),
        "language_model.lm_head.weight": (VOCAB, WIDTH),
        "multi_modal_projector.linear_1.weight": (WIDTH, VISION_WIDTH),
        "multi_modal_projector.linear_1.bias": (WIDTH,),
        "multi_modal_projector.linear_2.weight": (WIDTH, WIDTH),
        "multi_modal_projector.linear_2.bias": (WIDTH,),
        "vision_tower.vision_model.embeddings.class_embedding": (VISION_WIDTH,),
        "vision_tower.vision_model.embeddings.patch_embedding.weight": (VISION_WIDTH, 3, 14, 14),
        "vision_tower.vision_model.embeddings.position_embedding.weight": (5, VISION_WIDTH),
        "vision_tower.vision_model.pre_layrnorm.weight": (VISION_WIDTH,),
        "vision_tower.vision_model.pre_layrnorm.bias": (VISION_WIDTH,),
        "vision_tower.vision_model.post_layernorm.weight": (VISION_WIDTH,),
        "vision_tower.vision_model.post_layernorm.bias": (VISION_WIDTH,),
    }
    for i in range(VISION_LAYERS):
        layer = f"vision_tower.vision_model.encoder.layers.{i}"
        for name in ("layer_norm1", "layer_norm2"):
            found |= {f"{layer}.{name}.{leaf}": (VISION_WIDTH,) for leaf in ("weight", "bias")}
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found[f"{layer}.self_attn.{name}.weight"] = (VISION_WIDTH, VISION_WIDTH)
            found[f"{layer}.self_attn.{name}.bias"] = (VISION_WIDTH,)
        found[f"{layer}.mlp.fc1.weight"] = (VISION_MLP, VISION_WIDTH)
        found[f"{layer}.mlp.fc1.bias"] = (VISION_MLP,)
        found[f"{layer}.mlp.fc2.weight"] = (VISION_WIDTH, VISION_MLP)
        found[f"{layer}.mlp.fc2.bias"] = (VISION_WIDTH,)
    for i in range(TEXT_LAYERS):
        layer = f"language_model.model.layers.{i}"
        found |= {
            f"{layer}.input_layernorm.weight": (WIDTH,),
            f"{layer}.post_attention_layernorm.weight": (WIDTH,),
            f"{layer}.self_attn.q_proj.weight": (WIDTH, WIDTH),
            f"{layer}.self_attn.k_proj.weight": (KV, WIDTH),
            f"{layer}.self_attn.v_proj.weight": (KV, WIDTH),
            f"{layer}.self_attn.o_proj.weight": (WIDTH, WIDTH),
            f"{layer}.mlp.gate_proj.weight": (MLP, WIDTH),
            f"{layer}.mlp.up_proj.weight": (MLP, WIDTH),
            f"{layer}.mlp.down_proj.weight": (WIDTH, MLP),
        }
    return found


def random_weights(seed: int = 0, dtype=np.float32) -> dict[str, np.ndarray]:
    """Random values for all `shapes()`."""
    rng = np.random.default_rng(seed)
    return {name: (rng.normal(size=shape) * 0.3).astype(dtype) for name, shape in shapes().items()}


def write_config(folder: Path, config: dict | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or config_json()))


def write_checkpoint(
    folder: Path, weights: dict[str, np.ndarray], *, config: dict | None = None, shards: int = 1
) -> Path:
    write_config(folder, config)
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return folder
    names = sorted(weights)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[shard::shards]
        save_file({name: weights[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_processor(folder: Path, *, legacy: bool = False) -> Path:
    """Processor files; `legacy` ones, of transformers 4, do not say how long an image is."""
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    words = [*special, "USER:", "ASSISTANT:", "what", "is", "this", "?", "red", "blue"]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in [*special, "<image>"]])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    images = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "size": {"shortest_edge": 28},
        "crop_size": {"height": 28, "width": 28},
    }
    files = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "padding_side": "left",
            "processor_class": "LlavaProcessor",
        },
        "preprocessor_config.json": images,
    }
    if not legacy:
        files["processor_config.json"] = {
            "processor_class": "LlavaProcessor",
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": 14,
            "vision_feature_select_strategy": "default",
        }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def write_index(folder, weight_map):
    """model.safetensors.index.json, which says what file each weight is in."""
    index = {"weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
