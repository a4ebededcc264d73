"""MMBench and MME: questions with letters or yes and no to choose from."""

import base64
import io
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from models.inputs.images import read_picture
from vkq_apps.evals.datasets.entries import Entry, tsv_entries
from vkq_apps.evals.datasets.files import Pictures, find_files
from vkq_apps.evals.datasets.format import SHORT_ANSWER, Format, picture_sample
from vkq_apps.evals.metrics.text import EXACT
from vkq_apps.evals.metrics.yes_no import MME as MME_METRIC
from vkq_apps.evals.samples import Sample
from vkq_apps.files.text_files import read_text

__all__ = ["MMBENCH", "MME"]

_LETTERS = "ABCD"


def _read_mmbench(folder: Path) -> Iterator[Sample]:
    pictures: dict[str, str] = {}
    for entry in tsv_entries(find_files(folder, "*mmbench*dev*.tsv", "*MMBench*.tsv", "*.tsv")[0]):
        key, answer = entry.name("index"), entry.text("answer")
        options = {letter: entry.fields.get(letter) or "" for letter in _LETTERS}
        given = [letter for letter, option in options.items() if option.strip()]
        if answer not in given:
            raise entry.error(f"'answer' to be one of {', '.join(given)}", answer)
        image = entry.text("image")
        # A short "image" is the index of the row that has the picture.
        pictures[key] = pictures.get(image, image)
        if len(image) <= 64 and image not in pictures:
            raise entry.error("'image' to be base64 or an earlier index", image)
        hint = (entry.fields.get("hint") or "").strip()
        lines = [hint, entry.text("question"), *(f"{name}. {options[name]}" for name in given)]
        yield Sample(
            key=key,
            picture=f"{entry.where.rpartition(':')[0]}:{image if len(image) <= 64 else key}",
            load=partial(_decode, pictures[key], entry),
            question="\n".join(line for line in lines if line),
            answers=(answer,),
            choices=tuple(given),
            part=entry.fields.get("category") or "",
            place=entry.place,
        )


def _decode(image: str, entry: Entry) -> Sequence[Image.Image]:
    try:
        with Image.open(io.BytesIO(base64.b64decode(image, validate=True))) as picture:
            return [read_picture(picture)]
    # Pillow raises exceptions of many types.
    except Exception as error:
        raise entry.error("'image' to be a picture in base64", image) from error


def _read_mme(folder: Path) -> Iterator[Sample]:
    files = [path for path in find_files(folder, "*.txt") if path.stem.lower() != "readme"]
    for file in files:
        # <category>/images/x.jpg beside <category>/questions_answers_YN/x.txt, or both in one.
        apart = file.parent.name == "questions_answers_YN"
        category = file.parent.parent if apart else file.parent
        pictures = Pictures(category)
        names = [
            f"{place}{file.stem}{end}" for place in ("images/", "") for end in (".jpg", ".png")
        ]
        for number, line in enumerate(read_text(file).split("\n"), 1):
            if not line.strip():
                continue
            entry = Entry({}, f"{file}:{number}")
            question, tab, answer = line.rpartition("\t")
            known = answer.strip().lower() in ("yes", "no")
            if not tab or not known or not question.strip():
                raise entry.error("a question, a tab, and Yes or No", line)
            yield picture_sample(
                entry,
                pictures,
                names,
                key=f"{category.name}/{file.stem}/{number}",
                question=question.strip(),
                answers=(answer.strip().lower(),),
                part=category.name,
            )


MMBENCH = Format(
    "mmbench",
    "mmbench_dev_en.tsv with the pictures in base64",
    _read_mmbench,
    EXACT,
    prompt="{question}\nAnswer with the option's letter from the given choices directly.",
    max_new_tokens=4,
)
MME = Format(
    "mme",
    "one folder for each category, pictures and questions_answers_YN/*.txt",
    _read_mme,
    MME_METRIC,
    # MME's questions end with "Please answer yes or no." already.
    prompt=SHORT_ANSWER,
)
