"""Writes clips.npz: what transformers' processors make of the clips of tests/support/clip_cases.

They need torch and torchvision, which this project does not depend on:

    uv run --isolated --group parity --with torchvision --with num2words \
        python -m tests.goldens.clips
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from tests.support.clip_cases import CASES, Case, clip, write_files

__all__ = ["FILE", "real_output"]

FILE = Path(__file__).with_suffix(".npz")


def real_output(case: Case, folder: Path) -> dict[str, np.ndarray]:
    """The arrays of transformers' processor, its files in `folder`."""
    kind = getattr(transformers, case.processor)
    name = case.processor.removesuffix("Processor")
    video = {"Qwen2_5_VL": "Qwen2VL"}.get(name, name)
    options = dict(case.options)
    if case.processor == "Gemma4Processor":
        options["feature_extractor"] = transformers.Gemma4AudioFeatureExtractor()
    processor: Any = kind(
        image_processor=AutoImageProcessor.from_pretrained(folder, backend="pil"),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        video_processor=getattr(transformers, f"{video}VideoProcessor")(**case.videos),
        **options,
    )
    pictures = [clip(1, *size)[0] for size in case.pictures]
    rates = [
        {
            "total_num_frames": frames,
            "fps": fps,
            "frames_indices": list(range(frames)),
            "duration": None if fps is None else frames / fps,
        }
        for frames, _, _, fps in case.clips
    ]
    output = processor(
        text=[case.prompt],
        images=pictures or None,
        videos=[clip(*shape) for *shape, _ in case.clips],
        video_metadata=rates,
        return_tensors="pt",
    )
    return {
        key: np.asarray(value)
        for key, value in output.items()
        if key not in ("attention_mask", "video_metadata", "rows", "cols")
    }


if __name__ == "__main__":
    found = {}
    for title, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            write_files(Path(folder), case)
            output = real_output(case, Path(folder))
        found |= {f"{title}/{key}": value for key, value in output.items()}
        print(title, {key: value.shape for key, value in output.items()})
    np.savez_compressed(FILE, **found)
