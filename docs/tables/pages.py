"""Puts tables into README.md and the pages of docs/, between `<!-- table: NAME -->` and its end."""

import re
from collections.abc import Callable
from pathlib import Path

from docs import tables

DOCS = Path(__file__).parents[1]
PAGES = (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md")))
_TABLE = re.compile(r"(?<=<!-- table: )(\w+) -->\n.*?(?=<!-- /table -->)", re.DOTALL)


def with_tables(text: str) -> str:
    """The text of a page with each of its tables as `docs.tables` makes it."""

    def made(mark: re.Match[str]) -> str:
        rows: Callable[[], list[str]] = getattr(tables, mark[1])
        # Without the blank lines the marks would be rows of the table on the site.
        return "\n".join([f"{mark[1]} -->", "", *rows(), "", ""])

    return _TABLE.sub(made, text)


def write() -> list[str]:
    """Brings all pages up to date; the names of those that changed."""
    changed = []
    for page in PAGES:
        before = page.read_text()
        after = with_tables(before)
        if after != before:
            page.write_text(after)
            changed.append(page.name)
    return changed
