"""COCO Caption, VQAv2, GQA and POPE: photographs."""

from collections.abc import Iterator
from pathlib import Path

from vkq_apps.evals.datasets.entries import json_entries, json_mapping, jsonl_entries
from vkq_apps.evals.datasets.files import Pictures, find_files
from vkq_apps.evals.datasets.format import Format, picture_sample
from vkq_apps.evals.metrics.caption import CIDER
from vkq_apps.evals.metrics.vqa import GQA as GQA_METRIC
from vkq_apps.evals.metrics.vqa import VQA
from vkq_apps.evals.metrics.yes_no import POPE as POPE_METRIC
from vkq_apps.evals.samples import Sample

__all__ = ["COCO", "GQA", "POPE", "VQAV2"]


def _read_coco(folder: Path) -> Iterator[Sample]:
    pictures = Pictures(folder)
    file = find_files(folder, "captions_val*.json", "captions_*.json")[0]
    captions: dict[str, list[str]] = {}
    for entry in json_entries(file, "annotations"):
        captions.setdefault(entry.name("image_id"), []).append(entry.text("caption"))
    for entry in json_entries(file, "images"):
        key, name = entry.name("id"), entry.text("file_name")
        if key not in captions:
            raise entry.error(f"a caption of picture {key}", "none")
        yield picture_sample(
            entry,
            pictures,
            (name,),
            key=key,
            question="Provide a one-sentence caption for the provided image.",
            answers=tuple(captions[key]),
        )


def _read_vqav2(folder: Path) -> Iterator[Sample]:
    pictures = Pictures(folder)
    questions = find_files(folder, "v2_OpenEnded_mscoco_val*_questions.json")[0]
    annotations = find_files(folder, "v2_mscoco_val*_annotations.json")[0]
    answers: dict[str, tuple[str, ...]] = {}
    for entry in json_entries(annotations, "annotations"):
        people = entry.get("answers")
        if not isinstance(people, list) or not people:
            raise entry.error("'answers' to be a list", people)
        key = entry.name("question_id")
        if key in answers:
            raise entry.error("a question_id of its own", key)
        answers[key] = tuple(entry.within(one).text("answer") for one in people)
    for entry in json_entries(questions, "questions"):
        key, image = entry.name("question_id"), entry.name("image_id")
        if key not in answers:
            raise entry.error(f"answers to question {key} in {annotations.name}", "none")
        yield picture_sample(
            entry,
            pictures,
            (f"val2014/COCO_val2014_{image:0>12}.jpg", f"{image:0>12}.jpg"),
            key=key,
            question=entry.text("question"),
            answers=answers[key],
        )


def _read_gqa(folder: Path) -> Iterator[Sample]:
    pictures = Pictures(folder)
    names = ("testdev_balanced_questions.json", "val_balanced_questions.json")
    for key, entry in json_mapping(find_files(folder, *names)[0]):
        image = entry.name("imageId")
        yield picture_sample(
            entry,
            pictures,
            (f"images/{image}.jpg", f"{image}.jpg"),
            key=key,
            question=entry.text("question"),
            answers=entry.texts("answer"),
        )


def _read_pope(folder: Path) -> Iterator[Sample]:
    pictures = Pictures(folder)
    for file in find_files(folder, "coco_pope_*.json", "*pope_*.json"):
        part = file.stem.split("pope_")[-1]
        for number, entry in enumerate(jsonl_entries(file), 1):
            image, label = entry.text("image"), entry.text("label")
            if label not in ("yes", "no"):
                raise entry.error("'label' to be yes or no", label)
            yield picture_sample(
                entry,
                pictures,
                (f"val2014/{image}", image),
                key=f"{part}/{number}",
                question=entry.text("text"),
                answers=(label,),
                part=part,
            )


COCO = Format(
    "coco",
    "captions_val2014.json or captions_val2017.json, pictures in val2014/ or val2017/",
    _read_coco,
    CIDER,
    prompt="{question}",
    max_new_tokens=48,
)
VQAV2 = Format(
    "vqav2",
    "v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json, pictures in "
    "val2014/",
    _read_vqav2,
    VQA,
)
GQA = Format("gqa", "testdev_balanced_questions.json, pictures in images/", _read_gqa, GQA_METRIC)
POPE = Format("pope", "coco_pope_random.json, ..., pictures in val2014/", _read_pope, POPE_METRIC)
