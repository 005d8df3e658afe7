"""The drawings as SVG for a page that is read in light and in dark, on a desk and on a phone."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flwr_splitkd.report.load import RunData
from flwr_splitkd.report.style import COLORS, FAILED, GAP, NEUTRAL

__all__ = ["svg"]

# What the page's style sheet decides stands in the drawing under colours that nothing else has.
_INK, _GRID = "#010203", "#040506"
_VARIABLES = {_INK: "--ink", _GRID: "--grid", FAILED: "--failed", NEUTRAL: "--soft", GAP: "--card"}
_VARIABLES |= {color: f"--series-{number}" for number, color in enumerate(COLORS)}
# Narrow, so that its letters can still be read when it fills a phone.
_WIDTH_IN, _HEIGHT_IN, _FONT_PT = 5.2, 3.6, 11


def svg(
    draw: Callable[[Axes, Sequence[RunData]], None], runs: Sequence[RunData], *, prefix: str, height: float = 1
) -> str:
    """Draw runs as an ``<svg>`` element without a size of its own.

    Parameters
    ----------
    prefix
        Put before every id, so that several drawings fit into one page.
    height
        Factor on the usual height.
    """
    style = {name: _INK for name in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")}
    settings = {**style, "grid.color": _GRID, "font.size": _FONT_PT, "svg.fonttype": "none", "svg.hashsalt": prefix}
    with matplotlib.rc_context(settings):  # type: ignore[arg-type]  # its keys are a long list of literals
        figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN * height), layout="constrained", facecolor="none")
        axes = figure.subplots()
        axes.set_facecolor("none")
        draw(axes, runs)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, facecolor="none")
    return _for_page(out.getvalue(), prefix)


def _for_page(text: str, prefix: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)  # the figure around it has the words
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r"(url\(#|href=\"#)", rf"\1{prefix}-", text)
    # A hundredth of a point is finer than any screen.
    text = re.sub(r'(?<= d=")[^"]*', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path.group()), text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    # The page's own letters.
    return re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
