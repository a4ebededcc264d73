"""Random models of LLaVA-NeXT's kind: pictures cut into tiles of several shapes, and clips."""

import random
from functools import partial
from typing import Any

import numpy as np

from tests.support.draws.any_grids import normal
from tests.support.draws.batches import Tokens, counts_of_rows, prompt_rows, spread
from tests.support.draws.drawn import Drawn
from tests.support.draws.texts import ACTIVATIONS, KINDS, draw_text
from tests.support.draws.towers import draw_feature_layer, draw_tower
from tests.support.rows import padded_rows

__all__ = ["DRAWS"]


def _llava_next(rng: random.Random, model_type: str = "llava_next") -> Drawn:
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    tokens, video = Tokens.draw(rng), model_type != "llava_next"
    kind = rng.choice(("clip_vision_model", "siglip_vision_model"))
    tower = draw_tower(rng, kind)
    size = tower["image_size"]
    image, clip, *_ = tokens.marks
    most = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
    pinpoints = [[size * n for n in each] for each in rng.sample(most, rng.randint(1, 4))]
    content: dict[str, Any] = {
        "model_type": model_type,
        "vision_config": tower,
        "text_config": draw_text(rng, rng.choice(KINDS), tokens.vocabulary),
        "image_token_index": image,
        "projector_hidden_act": rng.choice(ACTIVATIONS),
        "multimodal_projector_bias": rng.random() < 0.5,
        "vision_feature_layer": draw_feature_layer(rng, tower),
        "vision_feature_select_strategy": "default" if kind.startswith("clip") else "full",
        "image_grid_pinpoints": pinpoints,
        "tie_word_embeddings": rng.random() < 0.3,
    }
    if video:
        content["video_token_index"] = clip
    side, frames = size // tower["patch_size"], rng.choice((1, 2, 3))
    per_frame = (side + 1) // 2
    if model_type == "llava_next_video":
        stride = rng.randint(1, side)
        content |= {
            "spatial_pool_mode": rng.choice(("average", "max")),
            "spatial_pool_stride": stride,
        }
        per_frame = side // stride
    if model_type == "llava_onevision":
        content["vision_aspect_ratio"] = f"anyres_max_{rng.choice((1, 2, 9))}"
    counts = counts_of_rows(rng)
    sizes = [[rng.randint(4, 60), rng.randint(4, 60)] for _ in range(sum(counts))]
    tiles = [image_size_to_num_patches(each, pinpoints, size) for each in sizes]
    pixels = normal(rng, len(sizes), max(tiles, default=1), 3, size, size)
    of_clips = normal(rng, sum(counts), frames, 3, size, size)
    clips = [[rng.random() < 0.3 for _ in range(n)] if video else [False] * n for n in counts]
    seed = rng.randrange(2**32)

    def batch(side_of_padding: str, theirs: Any) -> dict[str, np.ndarray]:
        import torch

        flat = [is_clip for row in clips for is_clip in row]
        shown = [i for i, is_clip in enumerate(flat) if not is_clip]
        arrays: dict[str, np.ndarray] = {}
        features = iter(())
        if shown:
            arrays = {"pixel_values": pixels[shown], "image_sizes": np.array(sizes)[shown]}
            if model_type == "llava_onevision":
                arrays["batch_num_images"] = np.array(
                    [row.count(False) for row in clips if False in row]
                )
            with torch.no_grad():
                found = theirs.get_image_features(
                    **{name: torch.tensor(value) for name, value in arrays.items()}
                ).pooler_output
            features = iter([len(each) for each in found])
        if any(flat):
            arrays["pixel_values_videos"] = of_clips[np.flatnonzero(flat)]
        newline = model_type == "llava_onevision"
        run = [clip] * (frames * per_frame**2 + newline)
        visuals = [run if is_clip else [image] * next(features) for is_clip in flat]
        rows = prompt_rows(random.Random(seed), tokens, spread(counts, visuals))
        return padded_rows(*rows, side=side_of_padding) | arrays

    return Drawn(content, batch, needs_model=True)


DRAWS = {
    "llava_next": _llava_next,
    "llava_next_video": partial(_llava_next, model_type="llava_next_video"),
    "llava_onevision": partial(_llava_next, model_type="llava_onevision"),
}
"""By model_type."""
