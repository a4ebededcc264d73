"""Hooks of mkdocs: help of commands, links to source files, complete APIs.

Links that leave docs/ point at files of the repository, which the site does not hold: they become
plain text, and one whose file is missing breaks the build (`mkdocs build --strict`).
"""

import importlib
import logging
import re
from pathlib import Path
from typing import Any

import typer
from typer.cli import get_docs_for_click

from vkq_apps.cli.app import COMMANDS, load_command

_ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")
_COMMANDS = "<!-- commands -->"
_log = logging.getLogger("mkdocs.hooks.vkq")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page with the help of commands, and without links that leave docs/."""
    folder = Path(page.file.abs_src_path).parent

    def shown(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        if target.is_relative_to(_ROOT / "docs"):
            return link[0]
        if not target.exists():
            _log.warning("%s links to %s, which does not exist", page.file.src_path, link[2])
        return link[1]

    if _COMMANDS in markdown:
        markdown = markdown.replace(_COMMANDS, "\n".join(command_reference()))
    return _LINK.sub(shown, markdown)


def on_page_content(html: str, page: Any, **_: Any) -> None:
    """Warns of names of a package's `__all__` that its API page does not have."""
    package = Path(page.file.src_path)
    if package.parent.name != "api" or not (_ROOT / package.stem).is_dir():
        return
    exported = importlib.import_module(package.stem).__all__
    modules = rf'id="{package.stem}\.([\w.]+\.)?'
    if missing := [name for name in exported if not re.search(rf'{modules}{name}"', html)]:
        _log.warning("%s does not describe %s", page.file.src_path, ", ".join(missing))


def command_reference() -> list[str]:
    """The help of every command of `vkq`, as Markdown."""
    pages = []
    for name in COMMANDS:
        command = load_command(name)
        context = typer.Context(command, info_name=f"vkq {name}")
        text = get_docs_for_click(obj=command, ctx=context, indent=1, name=f"vkq {name}")
        pages.append(re.sub(r"(?<!`)<(\w+)>", r"`<\1>`", text))  # no HTML
    return pages
