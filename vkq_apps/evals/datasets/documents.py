"""DocVQA, TextVQA, ChartQA and OCRBench: pictures with text in them."""

from collections.abc import Iterator
from pathlib import Path

from vkq_apps.evals.datasets.entries import json_entries
from vkq_apps.evals.datasets.files import Pictures, find_files
from vkq_apps.evals.datasets.format import Format, picture_sample
from vkq_apps.evals.metrics.relaxed import RELAXED
from vkq_apps.evals.metrics.text import ANLS, OCRBENCH
from vkq_apps.evals.metrics.vqa import VQA
from vkq_apps.evals.samples import Sample

__all__ = ["CHARTQA", "DOCVQA", "OCR_BENCH", "TEXTVQA"]


def _read_docvqa(folder: Path) -> Iterator[Sample]:
    pictures = Pictures(folder)
    for file in find_files(folder, "val_v1.0_withQT.json", "val_v1.0.json", "val*.json")[:1]:
        for entry in json_entries(file, "data"):
            image = entry.text("image")
            yield picture_sample(
                entry,
                pictures,
                (image,),
                key=entry.name("questionId"),
                question=entry.text("question"),
                answers=entry.texts("answers"),
            )


def _read_textvqa(folder: Path) -> Iterator[Sample]:
    pictures = Pictures(folder)
    for file in find_files(folder, "TextVQA_*_val.json")[:1]:
        for entry in json_entries(file, "data"):
            image = entry.text("image_id")
            yield picture_sample(
                entry,
                pictures,
                (f"train_images/{image}.jpg", f"{image}.jpg", f"{image}.png"),
                key=entry.name("question_id"),
                question=entry.text("question"),
                answers=entry.texts("answers"),
            )


def _read_chartqa(folder: Path) -> Iterator[Sample]:
    pictures = Pictures(folder)
    for file in find_files(folder, "test_[ha]u[mg]*.json"):
        part = file.stem.removeprefix("test_")
        for index, entry in enumerate(json_entries(file)):
            image = entry.text("imgname")
            yield picture_sample(
                entry,
                pictures,
                (f"test/png/{image}", f"png/{image}", image),
                key=f"{part}/{index}",
                question=entry.text("query"),
                answers=entry.texts("label"),
                part=part,
            )


def _read_ocrbench(folder: Path) -> Iterator[Sample]:
    pictures = Pictures(folder)
    for file in find_files(folder, "OCRBench.json")[:1]:
        for index, entry in enumerate(json_entries(file)):
            image = entry.text("image_path")
            yield picture_sample(
                entry,
                pictures,
                (f"OCRBench_Images/{image}", image),
                key=str(index),
                question=entry.text("question"),
                answers=entry.texts("answers"),
                part=entry.text("type"),
            )


DOCVQA = Format(
    "docvqa",
    "val_v1.0_withQT.json or val_v1.0.json, pictures in documents/",
    _read_docvqa,
    ANLS,
    max_new_tokens=32,
)
TEXTVQA = Format("textvqa", "TextVQA_0.5.1_val.json, pictures in train_images/", _read_textvqa, VQA)
CHARTQA = Format(
    "chartqa", "test_human.json and test_augmented.json, pictures in png/", _read_chartqa, RELAXED
)
OCR_BENCH = Format(
    "ocrbench",
    "OCRBench.json, pictures in OCRBench_Images/",
    _read_ocrbench,
    OCRBENCH,
    prompt="{question}",
    max_new_tokens=64,
)
