"""Records of annotation files, and errors that name the file and the line."""

import copy
import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from models.checkpoints.hf_settings import named_once
from vkq_apps.files.text_files import read_text

__all__ = [
    "Entry",
    "json_entries",
    "json_mapping",
    "jsonl_entries",
    "read_json",
    "tsv_entries",
]

_SHOWN = 60
_MOST_DIGITS = 400  # Python itself refuses more than 4,300


class Entry:
    """One record, with where it stands."""

    def __init__(self, fields: Any, where: str):
        """Raises ValueError unless `fields` is a mapping."""
        self.where = where
        self.fields: Mapping[str, Any] = self._check(fields)

    def within(self, fields: Any) -> "Entry":
        """An object inside this record."""
        inner = copy.copy(self)
        inner.fields = self._check(fields)
        return inner

    def _check(self, fields: Any) -> Mapping[str, Any]:
        if not isinstance(fields, Mapping):
            raise self.error("a JSON object", fields)
        return fields

    def error(self, expected: str, got: Any) -> ValueError:
        """The error that the record is not as expected."""
        return ValueError(
            f"{self.place()}: expected {_clipped(expected, 2 * _SHOWN)}, got {_clipped(repr(got))}"
        )

    def place(self) -> str:
        """The file and the line."""
        return self.where

    def get(self, name: str) -> Any:
        """A field that has to be there."""
        if name not in self.fields:
            raise self.error(f"a field {name!r}", sorted(map(str, self.fields)))
        return self.fields[name]

    def text(self, name: str) -> str:
        """A text with a word in it."""
        value = self.get(name)
        if not isinstance(value, str) or not value.strip() or not _is_written(value):
            raise self.error(f"{name!r} to be a text", value)
        return value.strip()

    def name(self, name: str) -> str:
        """A number or text that identifies something."""
        value = self.get(name)
        known = isinstance(value, int | str) and _is_written(value)
        if not known or not str(value).strip():
            raise self.error(f"{name!r} to be a whole number or a text", value)
        return str(value)

    def number(self, name: str) -> float:
        """A number above 0."""
        value = self.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise self.error(f"{name!r} to be a number above 0", value)
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """One text, or a list of at least one; numbers count as texts."""
        value = self.get(name)
        values = value if isinstance(value, list) else [value]
        good = [_is_written(x) for x in values]
        if not values or not all(good) or not any(str(x).strip() for x in values):
            raise self.error(f"{name!r} to be a text or a list of texts", value)
        return tuple(str(x).strip() for x in values)


def jsonl_entries(path: Path) -> Iterator[Entry]:
    """The objects of a JSONL file; empty lines do not count.

    Raises:
        ValueError: a line is no JSON object.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                fields = _parse(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}:{number}: expected a JSON object, got {line[:_SHOWN]!r}"
                ) from error
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error
            yield Entry(fields, f"{path}:{number}")


def _parse(text: str) -> Any:
    """The value of JSON text.

    Raises:
        ValueError: it is not JSON, is nested too deep, or names a field of an object twice.
    """
    try:
        return json.loads(text, object_pairs_hook=named_once, parse_int=_whole_number)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _whole_number(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(
            f"expected numbers of at most {_MOST_DIGITS} digits, got one of {len(digits)}"
        )
    return int(digits)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is not JSON.
    """
    text = read_text(path)
    try:
        return _parse(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: expected JSON: {error.msg}") from error
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON: {error}") from error


def json_entries(path: Path, key: str | None = None) -> Iterator[Entry]:
    """The objects of a JSON file's list, or of the list under a key.

    Raises:
        ValueError: there is no such list, or something else in it.
    """
    content = read_json(path)
    if key is not None:
        content = Entry(content, f"{path}:1").get(key)
    if not isinstance(content, list) or not content:
        what = "a list of records" if key is None else f"{key!r} to be a list of records"
        raise ValueError(f"{path}:1: expected {what}, got {_kind(content)}")
    for index, fields in enumerate(content):
        yield _Late(fields, path, key, index)


def json_mapping(path: Path) -> Iterator[tuple[str, Entry]]:
    """The objects of a JSON file's one object, by their names."""
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}:1: expected an object of records, got {_kind(content)}")
    for name, fields in content.items():
        yield name, _Late(fields, path, name, None)


def tsv_entries(path: Path) -> Iterator[Entry]:
    """The rows of a tab-separated file with a head line.

    Raises:
        ValueError: a row has more columns than the head line, two columns have one name, or a
            quotation does not end.
    """
    csv.field_size_limit(2**31 - 1)  # pictures in base64 are longer than the default
    # Without `strict`, an opening quotation mark takes all rows up to the next one into its cell.
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter="\t", strict=True)
    try:
        names = rows.fieldnames or ()
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice:
            raise ValueError(
                f"{path}:1: expected columns of different names, got {_clipped(repr(twice[0]))} "
                "twice"
            )
        for row in rows:
            if None in row:
                raise ValueError(
                    f"{path}:{rows.line_num}: expected {len(names)} columns, as the head line "
                    f"has, got {len(row) - 1 + len(row[None])}"
                )
            yield Entry(row, f"{path}:{rows.line_num}")
    except csv.Error as error:
        where = f"{path}:{rows.line_num + 1}"  # where the row begins
        raise ValueError(f"{where}: expected tab-separated text: {error}") from error


class _Late(Entry):
    """A record of a JSON file, whose line is looked for only when there is an error to tell."""

    def __init__(self, fields: Any, path: Path, key: str | None, index: int | None):
        self._place = path, key, index
        super().__init__(fields, str(path))

    def place(self) -> str:
        path, key, index = self._place
        if not path.is_file():  # a pipe is read once
            return str(path)
        return f"{path}:{_line_of(read_text(path), key, index)}"


def _is_written(value: Any) -> bool:
    """Whether a value is a text that UTF-8 can hold, or a finite number."""
    if isinstance(value, str):
        return all(not "\ud800" <= letter <= "\udfff" for letter in value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) < math.inf


def _clipped(text: str, length: int = _SHOWN) -> str:
    return text if len(text) <= length else f"{text[:length]}..."


def _kind(content: Any) -> str:
    return f"an empty {type(content).__name__}" if content in ([], {}) else type(content).__name__


def _line_of(text: str, key: str | None, index: int | None) -> int:
    """The line where element `index` of the list under `key` (or the value of `key`) begins.

    `text` is valid JSON that has both.
    """
    decode, place = json.JSONDecoder().raw_decode, _skip(text, 0)
    if key is not None:
        name, place = decode(text, _skip(text, place + 1))
        while name != key:
            place = _skip(text, decode(text, _skip(text, place))[1])
            name, place = decode(text, place)
        place = _skip(text, place)
    if index is not None:
        place = _skip(text, place + 1)
        for _ in range(index):
            place = _skip(text, decode(text, place)[1])
    return text.count("\n", 0, place) + 1


def _skip(text: str, place: int) -> int:
    """The next place that is no white space, comma or colon."""
    while place < len(text) and text[place] in " \t\r\n,:":
        place += 1
    return place
