"""Figures as SVG text to embed in a page, which sets their sizes, fonts and colours.

Colours are CSS variables of the page, so that a figure follows its light and dark theme: matplotlib draws with
placeholder colours, which are replaced in the text. Ids are prefixed with the figure's name, because several figures
share a page.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curves", "heat_map"]

Series: TypeAlias = Sequence[float | None]
Scale: TypeAlias = Literal["linear", "log", "share"]

_INK, _MUTED, _LINE = "#010101", "#020202", "#030303"
_SERIES = ("#040404", "#050505", "#060606", "#070707", "#080808", "#090909")
_CSS = {_INK: "var(--ink)", _MUTED: "var(--muted)", _LINE: "var(--line)"} | {
    color: f"var(--series-{number})" for number, color in enumerate(_SERIES, start=1)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mtl-cloud",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def curves(
    name: str,
    x: Sequence[int],
    series: Mapping[str, Series],
    *,
    ylabel: str,
    alt: str,
    bands: Mapping[str, tuple[Series, Series]] | None = None,
    scale: Scale = "linear",
) -> str:
    """Draw one line over rounds for each series, with gaps where a value is None or not finite.

    ``bands``: title of a series -> lower and upper bound, drawn as a shaded band around its line. ``scale``: of the
    vertical axis; ``share`` is linear and starts at zero or above.
    """
    from matplotlib import rc_context

    with rc_context(_STYLE):
        figure, axes = _figure(4.8, 2.7)
        for number, (title, values) in enumerate(series.items()):
            color = _SERIES[number % len(_SERIES)]
            _draw_line(axes, x, values, title, color, dashed=number >= len(_SERIES))
            if bands and title in bands:
                low, high = map(_points, bands[title])
                axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        _label_rounds(axes, x)
        axes.set_ylabel(ylabel)
        _scale(axes, scale)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2, handlelength=1.4, fontsize=8.5)
        return _svg(figure, name, alt)


def heat_map(
    name: str,
    values: Sequence[Sequence[float]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    xlabel: str,
    ylabel: str,
    alt: str,
    texts: Sequence[Sequence[str]] | None = None,
) -> str:
    """Draw cells in 0..1 as shades of one colour, with ``texts`` in them. The first row is at the top."""
    from matplotlib import rc_context

    with rc_context({**_STYLE, "axes.grid": False}):
        figure, axes = _figure(4.8, 0.9 + max(0.7, (0.36 if len(rows) <= 16 else 0.24) * len(rows)))
        _draw_cells(axes, values)
        _label_cells(axes, rows, columns)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        for row, line in enumerate(texts or ()):
            for column, text in enumerate(line):
                axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7.5)
        return _svg(figure, name, alt)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    return figure, axes


def _points(values: Series) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _draw_line(axes: Axes, x: Sequence[int], values: Series, title: str, color: str, *, dashed: bool) -> None:
    marker = "o" if len(x) <= 12 else None
    style = "--" if dashed else "-"
    axes.plot(x, _points(values), style, color=color, label=title, linewidth=1.8, marker=marker, markersize=3.5)


def _label_rounds(axes: Axes, x: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1))
    axes.set_xlim(x[0] - 0.5, x[-1] + 0.5)


def _scale(axes: Axes, scale: Scale) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.margins(y=0.08)
    if scale == "log":
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif scale == "share":
        low, high = axes.get_ylim()
        axes.set_ylim(max(0, low), max(1, high))


def _draw_cells(axes: Axes, values: Sequence[Sequence[float]]) -> None:
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    clear, full = to_rgba(_SERIES[0], 0.03), to_rgba(_SERIES[0], 0.85)
    depth = LinearSegmentedColormap.from_list("depth", [clear, full])
    axes.pcolormesh(values, cmap=depth, vmin=0, vmax=1, edgecolors="none")
    axes.invert_yaxis()
    axes.spines["bottom"].set_visible(False)


def _label_cells(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    tilt = 0 if max(map(len, columns), default=0) <= 3 else 45
    axes.set_xticks([j + 0.5 for j in range(len(columns))], columns)
    axes.tick_params(axis="x", length=0, rotation=tilt)
    for text in axes.get_xticklabels():
        text.set_horizontalalignment("right" if tilt else "center")
        text.set_rotation_mode("anchor")
    axes.set_yticks([i + 0.5 for i in range(len(rows))], rows)


def _svg(figure: Figure, name: str, alt: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
    document = buffer.getvalue()
    text = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", document[document.index("<svg") :])
    for placeholder, variable in _CSS.items():
        text = text.replace(placeholder, variable)
    box = re.search(r'viewBox="[^"]*"', text)
    opening = f'<svg {box.group() if box else ""} role="img" aria-label="{html.escape(alt)}">'
    return re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1)
