"""Formats of published data sets, in fixtures of a few records, and the errors of bad ones."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from models.inputs.images import read_picture
from vkq_apps.evals.datasets import FORMATS, read_data


def save_picture(path, level=200):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(path)


def save_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))


def in_base64():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def make_coco(folder):
    save_picture(folder / "val2014" / "COCO_val2014_000000000001.jpg")
    images = [{"id": 1, "file_name": "COCO_val2014_000000000001.jpg"}]
    captions = [{"image_id": 1, "id": n, "caption": f"a cat {n}"} for n in range(2)]
    content = {"images": images, "annotations": captions}
    save_json(folder / "annotations" / "captions_val2014.json", content)


def make_docvqa(folder):
    save_picture(folder / "documents" / "d_1.png")
    record = {"questionId": 7, "question": "total?", "image": "documents/d_1.png"}
    save_json(folder / "val_v1.0.json", {"data": [{**record, "answers": ["$5", "5 dollars"]}]})


def make_textvqa(folder):
    save_picture(folder / "train_images" / "0a.jpg")
    record = {"question": "brand?", "image_id": "0a", "question_id": 3, "answers": ["acme"] * 10}
    save_json(folder / "TextVQA_0.5.1_val.json", {"data": [record]})


def make_chartqa(folder):
    for name in ("human", "augmented"):
        save_picture(folder / "test" / "png" / f"{name}.png")
        record = {"imgname": f"{name}.png", "query": "how many?", "label": "14"}
        save_json(folder / "test" / f"test_{name}.json", [record])


def make_ocrbench(folder):
    save_picture(folder / "OCRBench_Images" / "IIIT5K" / "1.png")
    record = {"dataset_name": "IIIT5K", "type": "Regular Text Recognition", "id": 0}
    record |= {"image_path": "IIIT5K/1.png", "question": "what is written?", "answers": ["CAFE"]}
    save_json(folder / "OCRBench.json", [record])


def make_mmbench(folder):
    head = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"]
    rows = [
        ["1", "which?", "look", "cat", "dog", "", "", "B", "animals", in_base64()],
        ["1000001", "which?", "", "dog", "cat", "", "", "A", "animals", "1"],
    ]
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(row) for row in (head, *rows)]
    (folder / "mmbench_dev_en.tsv").write_text("\n".join(lines) + "\n")


def make_mme(folder):
    save_picture(folder / "existence" / "images" / "1.jpg")
    save_picture(folder / "OCR" / "1.jpg", level=10)
    lines = "Is there a cat? Please answer yes or no.\tYes\nIs there a dog?\tNo\n"
    for path in ("existence/questions_answers_YN/1.txt", "OCR/1.txt"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(lines)


def make_pope(folder):
    save_picture(folder / "val2014" / "COCO_val2014_000000000002.jpg")
    record = {"image": "COCO_val2014_000000000002.jpg", "text": "Is there a cat?", "label": "no"}
    lines = [json.dumps({"question_id": n, **record}) for n in (1, 2)]
    (folder / "coco_pope_random.json").write_text("\n".join(lines))


def make_vqav2(folder):
    save_picture(folder / "val2014" / "COCO_val2014_000000000003.jpg")
    question = {"question_id": 5, "image_id": 3, "question": "what colour?"}
    people = {"question_id": 5, "answers": [{"answer": "red", "answer_id": n} for n in range(10)]}
    questions = {"questions": [question]}
    save_json(folder / "v2_OpenEnded_mscoco_val2014_questions.json", questions)
    save_json(folder / "v2_mscoco_val2014_annotations.json", {"annotations": [people]})


def make_gqa(folder):
    save_picture(folder / "images" / "n4.jpg")
    record = {"imageId": "n4", "question": "who?", "answer": "woman"}
    save_json(folder / "testdev_balanced_questions.json", {"12": record})


FIXTURES = {
    "coco": (make_coco, 1, ("a cat 0", "a cat 1"), ""),
    "docvqa": (make_docvqa, 1, ("$5", "5 dollars"), ""),
    "textvqa": (make_textvqa, 1, ("acme",) * 10, ""),
    "chartqa": (make_chartqa, 2, ("14",), "augmented"),
    "ocrbench": (make_ocrbench, 1, ("CAFE",), "Regular Text Recognition"),
    "mmbench": (make_mmbench, 2, ("B",), "animals"),
    "mme": (make_mme, 4, ("yes",), "OCR"),
    "pope": (make_pope, 2, ("no",), "random"),
    "vqav2": (make_vqav2, 1, ("red",) * 10, ""),
    "gqa": (make_gqa, 1, ("woman",), ""),
}


def test_every_published_format_has_a_fixture():
    assert set(FIXTURES) | {"jsonl"} == set(FORMATS)


@pytest.mark.parametrize("name", FIXTURES)
def test_a_published_format_is_read(tmp_path, name):
    make, count, answers, part = FIXTURES[name]
    make(tmp_path)
    task = read_data([f"{name}={tmp_path}"])[name]
    samples = task.choose(100, 0)
    assert task.available == len(samples) == count
    assert len({sample.key for sample in samples}) == count
    assert (samples[0].answers, samples[0].part) == (answers, part)
    for sample in samples:
        assert sample.question in task.ask(sample)
        for picture in sample.load():
            assert read_picture(picture).size == (8, 8)


def test_mmbench_has_choices_and_pictures_of_earlier_rows(tmp_path):
    make_mmbench(tmp_path)
    first, second = read_data([f"mmbench={tmp_path}"])["mmbench"].choose(2, 0)
    assert first.choices == second.choices == ("A", "B")
    assert first.question == "look\nwhich?\nA. cat\nB. dog"
    assert first.picture == second.picture


def test_a_subset_is_drawn_by_the_seed_in_the_order_of_the_data(tmp_path):
    save_picture(tmp_path / "x.png")
    records = [{"image": "x.png", "question": f"q{n}", "answer": "a"} for n in range(50)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, records)))
    task = read_data([f"jsonl={tmp_path / 'own.jsonl'}"])["own"]
    keys = [[int(s.key) for s in task.choose(10, seed)] for seed in (0, 0, 1)]
    assert keys[0] == keys[1] == sorted(keys[0])
    assert keys[0] != keys[2]


GOOD = {"image": "x.png", "question": "what?", "answer": "a"}


def test_null_stands_for_no_field(tmp_path):
    save_picture(tmp_path / "x.png")
    nulls = dict.fromkeys(("id", "images", "video", "answers", "choices", "fps", "num_frames"))
    (tmp_path / "own.jsonl").write_text(json.dumps({**GOOD, **nulls}))
    (sample,) = read_data([f"jsonl={tmp_path / 'own.jsonl'}"])["own"].choose(1, 0)
    assert (sample.key, sample.answers, sample.num_pictures) == ("1", ("a",), 1)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**GOOD, "image": "none.png"}, "expected a picture file"),
        ({"image": "x.png", "answer": "a"}, "expected a field 'question'"),
        ({"image": "x.png", "question": "what?"}, "expected a field 'answer' or 'answers'"),
        ({**GOOD, "answers": ["b"]}, "expected a field 'answer' or 'answers', not both"),
        ({**GOOD, "answer": None}, "'answer' or 'answers', got ['image', 'question']"),
        ({**GOOD, "question": " "}, "expected 'question' to be a text"),
        ({**GOOD, "answer": []}, "expected 'answer' to be a text or a list of texts"),
        ({**GOOD, "answer": {"a": 1}}, "expected 'answer' to be a text or a list of texts"),
        ({**GOOD, "choices": ["b", "c"]}, "expected the answer to be one of"),
        ({**GOOD, "id": "1"}, "expected an id of its own"),
        ({**GOOD, "fps": 2}, "expected a field 'video' or 'videos' beside 'fps', got 2"),
        ({**GOOD, "video": ".", "fps": 0}, "expected 'fps' to be a number above 0, got 0"),
        ({**GOOD, "video": ".", "fps": 1e9}, "clip: fps: expected frames per second"),
        ({**GOOD, "video": ".", "num_frames": 2.5}, "expected 'num_frames' to be a whole number"),
        ([1, 2], "expected a JSON object, got [1, 2]"),
    ],
)
def test_a_bad_record_is_named_with_file_and_line(tmp_path, record, message):
    save_picture(tmp_path / "x.png")
    path = tmp_path / "own.jsonl"
    lines = [json.dumps({**GOOD, "id": "1"}), "", json.dumps(record)]
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"own\.jsonl:3") as caught:
        read_data([f"jsonl={path}"])
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_line_that_is_no_json_is_named(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"image": ')
    with pytest.raises(ValueError, match=r"own\.jsonl:1: expected a JSON object"):
        read_data([f"jsonl={tmp_path / 'own.jsonl'}"])


def spoil(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "line", "message"),
    [
        ("coco", "annotations/captions_val2014.json", '"a cat 1"', "3", 14, "'caption' to be"),
        ("docvqa", "val_v1.0.json", '"total?"', '""', 3, "'question' to be"),
        ("textvqa", "TextVQA_0.5.1_val.json", '"0a"', '"0b"', 3, "a picture file"),
        ("chartqa", "test/test_human.json", '"query"', '"quary"', 2, "a field 'query'"),
        ("ocrbench", "OCRBench.json", '"type"', '"kind"', 2, "a field 'type'"),
        (
            "mmbench",
            "mmbench_dev_en.tsv",
            "\tB\tanimals",
            "\tC\tanimals",
            2,
            "'answer' to be one of A, B",
        ),
        ("mme", "OCR/1.txt", "\tNo", "\tMaybe", 2, "a tab, and Yes or No"),
        ("pope", "coco_pope_random.json", '"label": "no"', '"label": "so"', 1, "yes or no"),
        ("vqav2", "v2_mscoco_val2014_annotations.json", '"answer":', '"text":', 3, "'answer'"),
        ("gqa", "testdev_balanced_questions.json", '"answer"', '"says"', 2, "a field 'answer'"),
    ],
)
def test_a_bad_published_record_is_named_with_file_and_line(
    tmp_path, name, file, old, new, line, message
):
    FIXTURES[name][0](tmp_path)
    spoil(tmp_path / file, old, new)
    with pytest.raises(ValueError, match="expected") as caught:
        read_data([f"{name}={tmp_path}"])
    assert str(caught.value).startswith(f"{tmp_path / file}:{line}: expected ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("given", "metric", "error", "message"),
    [
        (["docvqa"], None, ValueError, "FORMAT=PATH"),
        (["nlvr=/tmp"], None, ValueError, "got 'nlvr=/tmp'"),
        (["docvqa=/none"], None, FileNotFoundError, "/none does not exist"),
        (
            ["jsonl=/none.jsonl"],
            None,
            FileNotFoundError,
            "expected a JSONL file, there is none",
        ),
        ([], "anls", ValueError, "--metric: expected --data jsonl=FILE"),
        ([], "f1", ValueError, "--metric: expected one of exact"),
    ],
)
def test_bad_data_options(given, metric, error, message):
    with pytest.raises(error) as caught:
        read_data(given, metric)
    assert message in str(caught.value)


def test_a_folder_without_the_files_says_which(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"OCRBench\.json"):
        read_data([f"ocrbench={tmp_path}"])
