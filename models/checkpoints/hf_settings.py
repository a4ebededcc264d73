"""Checked settings from JSON files of Hugging Face: a frozen dataclass is the schema.

One line a field states its name in the file, type, range and default:

    @dataclass(frozen=True)
    class TowerSettings(Settings):
        hidden_size: Annotated[int, Between(1, 2**22)]
        hidden_act: Annotated[Activation, OneOf({"silu": Activation.SILU})] = Activation.SILU
        sliding_window: Annotated[int, Between(1, 2**31 - 1)] | None = None
        layer_types: tuple[str, ...] | None = None
        quantization_config: None = None  # anything else is refused
        ignored = frozenset({"initializer_range"})

    with errors_of(file):
        settings = TowerSettings.read(read_json(file)["text_config"], "text_config")

A field without a default has to be in the file. Types are int, float (always finite), bool, str,
None, dict (an object read elsewhere), `tuple[T, ...]` (a list), Literal, Annotated, and unions.
"""

import contextlib
import dataclasses
import json
import math
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin
from typing import get_type_hints as type_hints

from vkq_jax.files.regular_file import open_regular
from vkq_jax.messages import show, show_path

__all__ = [
    "Between",
    "OneOf",
    "Settings",
    "errors_of",
    "named_once",
    "read_by_type",
    "read_json",
]

_LARGEST_FILE = 2**27  # bytes; the largest published index has some 10 MB


@dataclasses.dataclass(frozen=True)
class Between:
    """The range of a number, both ends included."""

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class OneOf:
    """The words that a field may hold, and their meaning here; others are not implemented."""

    meanings: Mapping[str, Any]


class Settings:
    """Base of the schemas, which are frozen dataclasses."""

    ignored: ClassVar[frozenset[str]] = frozenset()
    """Fields that are known and change nothing that is computed here."""
    aliases: ClassVar[Mapping[str, str]] = {}
    """Other names of fields; where a file has both, the other name applies, as in transformers."""

    @classmethod
    def read(cls, content: Mapping[str, Any], where: str = "") -> Self:
        """The settings in a JSON object; fields that the schema does not name are left alone.

        Args:
            content: the object.
            where: its own name in the file, for errors; "" for the whole file.

        Raises:
            NotImplementedError: a value of the right type that is none of those supported.
            ValueError: a field is missing, or of a wrong type or outside its range.
        """
        hints = type_hints(cls, include_extras=True)
        values = {}
        for field in dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]
            others = (name for name, meant in cls.aliases.items() if meant == field.name)
            key = next((name for name in others if content.get(name) is not None), field.name)
            name = f"{where}.{key}" if where else key
            if key in content:
                values[field.name] = _convert(hints[field.name], content[key], name)
            elif field.default is dataclasses.MISSING:
                raise ValueError(f"{name} is missing: expected {_describe(hints[field.name])}")
        return cls(**values)

    @classmethod
    def unread(cls, content: Mapping[str, Any]) -> list[str]:
        """Names in a JSON object that the schema neither reads nor knows to be of no effect."""
        fields = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
        known = {field.name for field in fields} | cls.ignored | cls.aliases.keys()
        return [name for name in content if name not in known]


def read_by_type[S: Settings](
    schemas: Mapping[str, type[S]],
    content: Mapping[str, Any],
    where: str,
    *,
    supported: Collection[str],
    default: str,
) -> S:
    """The settings in an object whose `model_type` names their schema.

    Args:
        schemas: by model_type.
        content: the object.
        where: its own name in the file, for errors.
        supported: model types that may be.
        default: the model_type of an object that states none.

    Raises:
        NotImplementedError: another model_type, or a setting that is not supported.
        ValueError: a field of a wrong type or out of range.
    """
    name = content.get("model_type", default)
    if not isinstance(name, str):
        raise ValueError(f"{where}.model_type: expected text, got {show(name)}")
    if name not in supported:
        words = ", ".join(map(repr, supported))
        raise NotImplementedError(f"{where}.model_type={show(name)}; supported: {words}")
    return schemas[name].read(content, where)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; a byte order mark is skipped, a name given twice is refused.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, no UTF-8, or no JSON object.
    """
    if not os.path.isfile(file):  # pathlib's raises for some impossible names
        raise FileNotFoundError(f"{show_path(file)} is missing")
    try:
        with open_regular(file) as stream:
            if (size := os.fstat(stream.fileno()).st_size) > _LARGEST_FILE:
                raise ValueError(f"it has {size} bytes, more than {_LARGEST_FILE}")
            text = stream.read().decode("utf-8-sig")
        content = json.loads(text, object_pairs_hook=named_once)
    except OSError as error:
        raise ValueError(f"{show_path(file)} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{show_path(file)} is not valid JSON: it is not UTF-8 at byte {error.start}"
        ) from error
    except RecursionError as error:
        raise ValueError(f"{show_path(file)} is not valid JSON: it is nested too deep") from error
    except ValueError as error:
        raise ValueError(f"{show_path(file)} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        kind = _KINDS.get(type(content), "null")
        raise ValueError(f"{show_path(file)} should hold a JSON object, got {kind}")
    return content


@contextlib.contextmanager
def errors_of(file: Path) -> Iterator[None]:
    """Names the file in errors of its settings."""
    try:
        yield
    except (ValueError, NotImplementedError) as error:
        kind = NotImplementedError if isinstance(error, NotImplementedError) else ValueError
        raise kind(f"{show_path(file)}: {error}") from error


_KINDS = {
    list: "a list",
    str: "a string",
    bool: "true or false",
    int: "a number",
    float: "a number",
}


def named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these names and values; raises ValueError for a name that is given twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{show(name)} is given twice in one object")
    return content


def _convert(hint: Any, value: Any, name: str) -> Any:
    """The value that a field stands for."""
    if not _accepts(hint, value):
        if hint is NoneType:
            raise NotImplementedError(f"{name}={show(value)}; supported: null")
        raise ValueError(f"{name}: expected {_describe(hint)}, got {show(value)}")
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _convert(next(each for each in arguments if _accepts(each, value)), value, name)
    if origin is Annotated:
        return _within(hint, value, name)
    if origin is Literal and value not in arguments:
        raise _unsupported(name, value, arguments)
    if origin is tuple:
        return tuple(_convert(arguments[0], each, f"{name}[{i}]") for i, each in enumerate(value))
    return _finite(value, name) if hint is float else value


def _within(hint: Any, value: Any, name: str) -> Any:
    """The value of an annotated field, in its range or by its meaning."""
    inner, note = get_args(hint)
    if isinstance(note, OneOf):
        if value not in note.meanings:
            raise _unsupported(name, value, note.meanings)
        return note.meanings[value]
    number = _convert(inner, value, name)
    if not note.low <= number <= note.high:
        raise ValueError(f"{name}: expected {_describe(hint)}, got {show(value)}")
    return number


def _accepts(hint: Any, value: Any) -> bool:
    """Whether a value has a field's JSON type, whatever its range."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_accepts(each, value) for each in arguments)
    if origin is Annotated:
        named = isinstance(arguments[1], OneOf)
        return isinstance(value, str) if named else _accepts(arguments[0], value)
    if origin is Literal:
        return any(type(value) is type(choice) for choice in arguments)
    if origin is tuple:
        return isinstance(value, list)
    if origin is dict:
        return isinstance(value, dict)
    if hint in (int, float):
        numbers = int if hint is int else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool)
    return isinstance(value, hint)


def _finite(value: float, name: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number, got {show(value)}")
    return number


def _unsupported(name: str, value: Any, supported: Any) -> NotImplementedError:
    words = ", ".join(map(repr, supported))
    return NotImplementedError(f"{name}={show(value)}; supported: {words}")


def _describe(hint: Any) -> str:
    """A field's type and range in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(_describe, arguments))
    if origin is Annotated:
        inner, note = arguments
        if isinstance(note, OneOf):
            return f"one of {', '.join(map(repr, note.meanings))}"
        return f"{_describe(inner)} from {note.low} to {note.high}"
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is tuple:
        return f"a list, each {_describe(arguments[0])}"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
    return names.get(hint, "null" if hint is NoneType else "an object")
