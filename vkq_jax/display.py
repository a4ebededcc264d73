"""Short forms of pytrees for people: one line for a console, a small table for a notebook.

`summarize` says what a table has; every class with a summary has both forms. The others name
their fields, arrays by dtype and shape.
"""

import dataclasses
import functools
import html
from typing import Any

import jax

__all__ = ["describe", "describe_array", "is_array", "summarize", "table"]

_LONGEST_ITEM, _MOST_ITEMS = 60, 4


@functools.singledispatch
def summarize(value: Any) -> dict[str, Any] | None:
    """The things to say of a value, by name; None where its fields say them all.

    Each is a text, or a value that has a summary itself.
    """
    return None


def describe(value: Any) -> str:
    """The value in one line, its type in front."""
    rows = _summary(value)
    if rows is None:
        parts = {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value)}
        rows = {name: _item(part) for name, part in parts.items() if part is not None}
        return f"{type(value).__name__}({', '.join(f'{k}={v}' for k, v in rows.items())})"
    texts = (f"{name}: {x if isinstance(x, str) else describe(x)}" for name, x in rows.items())
    return f"{type(value).__name__}({'; '.join(texts)})"


def table(value: Any) -> str | None:
    """The summary as an HTML table, for notebooks; None where a value has none."""
    rows = _summary(value)
    if rows is None:
        return None
    lines = "".join(
        f'<tr><td style="text-align:left">{html.escape(name)}</td>'
        f'<td style="text-align:left">{_cell(x)}</td></tr>'
        for name, x in rows.items()
    )
    title = html.escape(type(value).__name__)
    return f'<table><tr><th colspan="2" style="text-align:left">{title}</th></tr>{lines}</table>'


def _cell(x: Any) -> str:
    """One thing of a summary in HTML."""
    if isinstance(x, str):
        return html.escape(x)
    return table(x) or html.escape(describe(x))


def _summary(value: Any) -> dict[str, Any] | None:
    """As `summarize`; None where parts do not fit together, whose fields then say so."""
    try:
        return summarize(value)
    except Exception:  # a repr never fails
        return None


def is_array(value: Any) -> bool:
    """Whether a leaf is an array, maybe traced or abstract."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def describe_array(x: Any) -> str:
    """Dtype and shape: 'uint32[6,1,4,288]'."""
    return f"{x.dtype}[{','.join(map(str, x.shape))}]"


def _item(value: Any) -> str:
    """One field of a value."""
    if is_array(value):
        return describe_array(value)
    if isinstance(value, tuple | list):
        items = [_item(item) for item in value[:_MOST_ITEMS]]
        rest = len(value) - len(items)
        return f"({', '.join(items)}{f', {rest} more' if rest else ''})"
    leaves = jax.tree.leaves(value)
    if len(leaves) == 1 and leaves[0] is value:  # no pytree
        text = repr(value)
        return text if len(text) <= _LONGEST_ITEM else f"{text[: _LONGEST_ITEM - 3]}..."
    if summarize.dispatch(type(value)) is not summarize.dispatch(object):
        return describe(value)
    return f"<{type(value).__name__} of {len(leaves)} arrays>"
