"""Shapes of published models, by name: what benchmarks and tests mean by "at a real shape".

Figures come from the text settings of each checkpoint's `config.json` on Hugging Face; visual
tokens are those of the usual prompt, by the model's own way of cutting pictures:

| name | checkpoint | visual tokens |
|---|---|---|
| llava-1.5-7b | llava-hf/llava-1.5-7b-hf (Vicuna 7B) | a picture of (336 / 14)^2 |
| llava-next-7b | llava-hf/llava-v1.6-mistral-7b-hf (Mistral 7B) | 4 tiles, an overview, 576 each |
| internvl2.5-8b | OpenGVLab/InternVL2_5-8B (InternLM2.5 7B) | 12 tiles, an overview, 256 each |
| qwen3-vl-8b | Qwen/Qwen3-VL-8B-Instruct | 3,328: this project's choice, InternVL's |
| qwen2.5-vl-7b | Qwen/Qwen2.5-VL-7B-Instruct | 8,192 of video: this project's choice |

What changes no byte and no operation of a decode step is left out: norms' epsilon, InternLM's
dynamic RoPE below its limit; and Qwen's biases of queries, keys and values, 0.002 % of its weights.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["SHAPES", "ModelShape", "find_shape"]


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """Sizes of a model: those that its text tower and its cache depend on.

    Attributes:
        width: channels of a token.
        mlp_width: hidden channels of a block's gated MLP.
        visual_tokens: of the usual prompt.
        rope_theta: base of RoPE's wavelengths.
    """

    name: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    width: int
    mlp_width: int
    vocab_size: int
    visual_tokens: int
    rope_theta: float = 10000.0

    @property
    def queries_per_kv_head(self) -> int:
        """Query heads that read each key/value head."""
        return self.num_heads // self.num_kv_heads


SHAPES: Mapping[str, ModelShape] = MappingProxyType(
    {
        shape.name: shape
        for shape in (
            ModelShape("llava-1.5-7b", 32, 32, 32, 128, 4096, 11008, 32064, 576),
            ModelShape("llava-next-7b", 32, 32, 8, 128, 4096, 14336, 32064, 2880, 1e6),
            ModelShape("internvl2.5-8b", 32, 32, 8, 128, 4096, 14336, 92553, 3328, 1e6),
            ModelShape("qwen3-vl-8b", 36, 32, 8, 128, 4096, 12288, 151936, 3328, 5e6),
            ModelShape("qwen2.5-vl-7b", 28, 28, 4, 128, 3584, 18944, 152064, 8192, 1e6),
            # No published model: what a laptop runs in a test.
            ModelShape("tiny", 2, 4, 2, 64, 128, 192, 256, 320),
        )
    }
)


def find_shape(name: str) -> ModelShape:
    """The shape of this name.

    Raises:
        ValueError: there is none; the message lists them.
    """
    if name not in SHAPES:
        raise ValueError(f"unknown shape {name!r}, known are {', '.join(SHAPES)}")
    return SHAPES[name]
