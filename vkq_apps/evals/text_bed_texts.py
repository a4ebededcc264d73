"""Prose and code for the text bed: a folder's, or what every Python installation has at hand."""

import dataclasses
import functools
import html
import importlib.metadata
import pydoc_data.topics
import random
import re
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

__all__ = ["Excerpt", "cut_texts"]

_KINDS = {
    ".py": "code", ".c": "code", ".h": "code", ".js": "code", ".rs": "code",
    ".md": "prose", ".rst": "prose", ".txt": "prose", ".html": "prose",
}  # fmt: skip
_Sources = Mapping[str, Mapping[str, Callable[[], str]]]  # kind, name, how to read it
_SKIPPED = 500  # characters: a file's head is often a licence, alike in many files
_PER_TOKEN = 8  # characters that hold a token, and more


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """So many tokens from the middle of one source; `ids` are the tokenizer's."""

    kind: str
    name: str
    ids: list[int]


def cut_texts(
    tokenize: Callable[[str], list[int]],
    *,
    calibration: int,
    test: int,
    tokens: int,
    folder: Path | None = None,
    seed: int = 0,
) -> tuple[list[Excerpt], list[Excerpt]]:
    """Texts to calibrate with and others to measure on, each from a source of its own.

    Kinds take turns. Where nothing is given they are the standard library's code and reference, and
    the descriptions of installed packages, of which there are some among the test's texts alone: so
    calibration and test differ in kind, too.

    Args:
        tokenize: token ids of a text, without special tokens.
        calibration, test: how many of each.
        tokens: of each text.
        folder: take the code and prose in this folder instead, by the files' suffixes.
        seed: of the order of the sources.

    Raises:
        ValueError: there are too few sources that are long enough.
    """
    sources = _files(folder) if folder is not None else _own_sources()
    unseen = {"readme"} if folder is None else set[str]()
    seen: set[str] = set()

    def draw(count: int, kinds: list[str]) -> list[Excerpt]:
        order = [_excerpts(kind, sources[kind], tokenize, tokens, seed, seen) for kind in kinds]
        found: list[Excerpt] = []
        while order and len(found) < count:
            one = next(order[0], None)
            order = order[1:] if one is None else [*order[1:], order[0]]
            found += [] if one is None else [one]
        if len(found) < count:
            raise ValueError(
                f"expected {calibration} + {test} texts of {tokens} tokens in "
                f"{folder or 'the standard library'}, got {len(seen)}: give --texts FOLDER with "
                f"longer or more files ({', '.join(_KINDS)}), or ask for fewer"
            )
        return found

    measured = draw(test, list(sources))
    return draw(calibration, [kind for kind in sources if kind not in unseen]), measured


def _excerpts(
    kind: str,
    sources: Mapping[str, Callable[[], str]],
    tokenize: Callable[[str], list[int]],
    tokens: int,
    seed: int,
    seen: set[str],
) -> Iterator[Excerpt]:
    names = sorted(sources)
    random.Random(f"{seed}/{kind}").shuffle(names)
    for name in names:
        if name in seen:
            continue
        text = sources[name]()
        ids = tokenize(text[_SKIPPED : _SKIPPED + _PER_TOKEN * tokens])[:tokens]
        if len(ids) == tokens:
            seen.add(name)
            yield Excerpt(kind, name, ids)


def _own_sources() -> _Sources:
    library = Path(sysconfig.get_path("stdlib"))
    topics = pydoc_data.topics.topics
    readme = {
        package.name: functools.partial(_description, package)
        for package in importlib.metadata.distributions()
    }
    return {
        "code": {path.name: functools.partial(_read, path) for path in library.glob("*.py")},
        "reference": {name: functools.partial(topics.__getitem__, name) for name in topics},
        "readme": readme,
    }


def _description(package: importlib.metadata.Distribution) -> str:
    return str(package.metadata.json.get("description", ""))


def _files(folder: Path) -> _Sources:
    if not folder.is_dir():
        raise ValueError(f"--texts: expected a folder, got {folder}")
    found: dict[str, dict[str, Callable[[], str]]] = {}
    for path in folder.rglob("*"):
        kind = _KINDS.get(path.suffix.lower())
        if kind is not None and path.is_file():
            found.setdefault(kind, {})[str(path.relative_to(folder))] = functools.partial(
                _read, path
            )
    return dict(sorted(found.items()))


def _read(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix.lower() != ".html":
        return text
    main = re.search(r"<main>(.*?)</main>", text, re.DOTALL)
    text = html.unescape(re.sub(r"<[^>]+>", "", main[1] if main else text))
    return re.sub(r"\n\s*\n+", "\n\n", text)
