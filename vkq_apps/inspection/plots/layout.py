"""Where the visual tokens are: in the prompt as written, as read, and in the cache."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vkq_apps.inspection.layout import Segment
from vkq_apps.inspection.plots.style import AFTER, BEFORE, TEXT, hide_frame, new_figure
from vkq_jax.byte_units import human_bytes
from vkq_jax.cache.accounting import CacheBytes

__all__ = ["plot_layout"]

_LINE, _MOST_LINES = 110, 30
_BACKDROP = {"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 2.0}


def plot_layout(quant: str, segments: Sequence[Segment], nbytes: CacheBytes) -> Figure:
    """Three strips: tokens as written, positions as read, bytes before and after coding."""
    lines = _wrap(segments)
    heights = [0.7 + 0.42 * len(lines), 1.3, 1.8]
    figure = new_figure(
        11.0,
        0.4 + sum(heights),
        "The prompt's tokens, and what they take in the cache",
        "Hatched: visual tokens, the only ones that are coded. Text stays in full precision.",
    )
    written, read, cached = figure.subplots(3, 1, height_ratios=heights)
    _draw_written(written, lines)
    _draw_read(read, segments)
    _draw_cached(cached, quant, nbytes)
    return figure


def _wrap(segments: Sequence[Segment]) -> list[list[tuple[str, bool]]]:
    """Lines of (token, is visual), at most `_LINE` characters wide; a picture is one token."""
    lines: list[list[tuple[str, bool]]] = [[]]
    filled = 0.0
    for segment in segments:
        for token in ["<image>"] if segment.text is None else segment.text:
            shown = token.replace("\n", "↵").replace(" ", "·")
            if lines[-1] and filled + _width(shown) > _LINE:
                if len(lines) == _MOST_LINES:
                    lines[-1].append(("…", False))
                    return lines
                lines.append([])
                filled = 0.0
            lines[-1].append((shown, segment.is_visual))
            filled += _width(shown)
    return lines


def _width(token: str) -> float:
    return len(token) + 1.2


def _box(axes: Axes, start: float, width: float, y: float, *, visual: bool, colour: str) -> None:
    # Hatched as well, for those who see no colours.
    axes.barh(
        y,
        width,
        left=start,
        height=0.72,
        color=colour,
        alpha=0.85,
        edgecolor="white",
        linewidth=0.6,
        hatch="////" if visual else None,
    )


def _draw_written(axes: Axes, lines: list[list[tuple[str, bool]]]) -> None:
    for row, line in enumerate(lines):
        x = 0.0
        for token, visual in line:
            _box(axes, x, _width(token), row, visual=visual, colour=BEFORE if visual else TEXT)
            axes.text(
                x + _width(token) / 2,
                row,
                token,
                ha="center",
                va="center",
                family="monospace",
                fontsize=8,
                bbox=_BACKDROP if visual else None,
            )
            x += _width(token)
    axes.set(xlim=(-0.5, _LINE + 2.0), ylim=(len(lines) - 0.4, -0.6))
    axes.set_title("prompt as written: one box a token", loc="left")
    hide_frame(axes)


def _draw_read(axes: Axes, segments: Sequence[Segment]) -> None:
    total = segments[-1].stop
    for segment in segments:
        _box(
            axes,
            segment.start,
            segment.length,
            0,
            visual=segment.is_visual,
            colour=_colour(segment),
        )
        if segment.is_visual:
            axes.text(
                segment.start + segment.length / 2,
                0,
                f"{segment.length} visual tokens, positions {segment.start} to {segment.stop - 1}",
                ha="center",
                va="center",
                bbox=_BACKDROP,
            )
    axes.set(xlim=(-0.005 * total, 1.005 * total), ylim=(-0.6, 0.6), xlabel="position")
    text = sum(segment.length for segment in segments if not segment.is_visual)
    axes.set_title(f"prompt as read: {total} tokens, {text} of them text", loc="left")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _draw_cached(axes: Axes, quant: str, nbytes: CacheBytes) -> None:
    rows = (
        (1, "full precision", nbytes.visual_full_precision, BEFORE),
        (0, quant, nbytes.visual, AFTER),
    )
    most = max(nbytes.visual, nbytes.visual_full_precision) + nbytes.text
    unit, unit_name = (2**20, "MiB") if most >= 2**20 else (2**10, "KiB")
    end = most / unit
    for y, _, visual_bytes, colour in rows:
        visual, text = visual_bytes / unit, nbytes.text / unit
        _box(axes, 0, visual, y, visual=True, colour=colour)
        _box(axes, visual, text, y, visual=False, colour=TEXT)
        inside = visual > 0.5 * end
        axes.text(
            visual / 2 if inside else visual + text + 0.01 * end,
            y,
            f"visual {human_bytes(visual_bytes)}, text {human_bytes(nbytes.text)}",
            ha="center" if inside else "left",
            va="center",
            bbox=_BACKDROP,
        )
    axes.set(
        xlim=(-0.005 * end, 1.005 * end),
        ylim=(-0.6, 1.6),
        xlabel=f"keys and values of the prompt [{unit_name}]",
    )
    axes.set_yticks([y for y, *_ in rows], labels=[name for _, name, *_ in rows])
    axes.set_title(
        f"in the cache: {nbytes.visual_reduction:.1%} of the visual bytes saved", loc="left"
    )
    axes.spines["left"].set_visible(False)


def _colour(segment: Segment) -> str:
    return BEFORE if segment.is_visual else TEXT
