"""Line charts as inline SVG whose colours follow the page, in light and in dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ehrsequencing.tracking.html import Html, element, join
from ehrsequencing.tracking.summary import format_number

WIDTH, HEIGHT, SMALL = 440, 290, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 44
# Lines differ in dashes as well as in colour, for those who do not see the colours apart.
_DASHES = (None, "7 4", "2 4", "9 3 2 3", "12 4", "1 3")

Point = tuple[float, float | None]


@dataclass(frozen=True)
class Series:
    """A named line.

    Args:
        points: (x, y) in order; a None in y leaves a gap.
        intervals: Low and high per point, for whiskers; () draws none.
        dots: Mark every point.
        line: Connect the points.
    """

    name: str
    points: Sequence[Point]
    intervals: Sequence[tuple[float | None, float | None]] = ()
    dots: bool = False
    line: bool = True


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> ticks(3.0, 3.0)
    [3.0]
    """
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def tick_text(value: float, shown: Sequence[float]) -> str:
    """A tick's label with as many decimals as the ticks need."""
    step = min((b - a for a, b in pairwise(shown)), default=1.0)
    decimals = max(0, min(6, -math.floor(math.log10(step) + 1e-9))) if step > 0 else 0
    if abs(step * 10**decimals - round(step * 10**decimals)) > 1e-6:
        decimals += 1
    return f"{value + 0.0:,.{decimals}f}"


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    diagonal: bool = False,
    level: float | None = None,
    integer_x: bool = False,
    x_text: Callable[[float], str] | None = None,
    width: int = WIDTH,
) -> Html:
    """A figure with caption, chart and legend.

    Args:
        title: Caption, also read out to those who do not see the chart.
        series: The lines.
        x_label: Name of the horizontal axis.
        y_label: Name of the vertical axis.
        x_range: Ends of the axis; from the data by default.
        y_range: Likewise.
        diagonal: Draw the dashed line y = x.
        level: Draw a dashed horizontal line there.
        integer_x: Label whole numbers only.
        x_text: Label of a place on the horizontal axis; the number by default.
        width: Units across, of which the text is 12 high; fewer for a chart that is shown small.
    """
    height = HEIGHT if width == WIDTH else round(0.85 * width)
    xs = [x for item in series for x, y in item.points if y is not None]
    ys = [y for item in series for _, y in item.points if y is not None]
    ys += [bound for item in series for pair in item.intervals for bound in pair if bound is not None]
    x_low, x_high = x_range or _spread(xs, 0.0)
    y_low, y_high = y_range or _spread(ys, 0.06)

    def to_x(x: float) -> float:
        return round(_LEFT + (x - x_low) / (x_high - x_low) * (width - _LEFT - _RIGHT), 1)

    def to_y(y: float) -> float:
        share = (min(max(y, y_low), y_high) - y_low) / (y_high - y_low)
        return round(height - _BOTTOM - share * (height - _TOP - _BOTTOM), 1)

    parts = [element("title", title), element("desc", _describe(series, x_label, y_label))]
    y_ticks, x_ticks = ticks(y_low, y_high), ticks(x_low, x_high, max(3, width // 80))
    if integer_x:
        x_ticks = [tick for tick in x_ticks if tick == round(tick)]
    for tick in y_ticks:
        y = to_y(tick)
        parts.append(element("line", x1=_LEFT, x2=width - _RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(element("text", tick_text(tick, y_ticks), x=_LEFT - 7, y=y + 4, text_anchor="end"))
    base = height - _BOTTOM
    for tick in x_ticks:
        x = to_x(tick)
        parts.append(element("line", x1=x, x2=x, y1=base, y2=base + 4, class_="axis"))
        parts.append(
            element(
                "text", x_text(tick) if x_text else tick_text(tick, x_ticks), x=x, y=base + 18, text_anchor="middle"
            )
        )
    parts.append(element("line", x1=_LEFT, x2=width - _RIGHT, y1=base, y2=base, class_="axis"))
    middle_x, middle_y = (_LEFT + width - _RIGHT) / 2, (_TOP + base) / 2
    parts.append(element("text", x_label, x=middle_x, y=height - 6, text_anchor="middle"))
    turned = f"rotate(-90 12 {middle_y})"
    parts.append(element("text", y_label, x=12, y=middle_y, text_anchor="middle", transform=turned))
    if diagonal:
        low, high = max(x_low, y_low), min(x_high, y_high)
        parts.append(element("line", x1=to_x(low), y1=to_y(low), x2=to_x(high), y2=to_y(high), class_="ref"))
    if level is not None:
        y = to_y(level)
        parts.append(element("line", x1=_LEFT, x2=width - _RIGHT, y1=y, y2=y, class_="ref"))
    for index, item in enumerate(series):
        parts.append(_draw(item, index, to_x, to_y))
    chart = element("svg", *parts, viewBox=f"0 0 {width} {height}", role="img")
    return element("figure", element("figcaption", title), chart, _legend(series) if len(series) > 1 else None)


def _draw(item: Series, index: int, to_x: Callable[[float], float], to_y: Callable[[float], float]) -> Html:
    parts = []
    if item.line:
        path, pen, last = [], "M", (math.inf, math.inf)
        for x, y in item.points:
            if y is None:
                pen = "M"
                continue
            place = (to_x(x), to_y(y))
            # A ROC curve has a corner per positive; what is closer than half a pixel is not seen.
            if pen == "L" and math.dist(place, last) < 0.5:
                continue
            path.append(f"{pen}{place[0]} {place[1]}")
            pen, last = "L", place
        parts.append(element("path", d="".join(path), class_="line", stroke_dasharray=_DASHES[index % len(_DASHES)]))
    for (x, _), (low, high) in zip(item.points, item.intervals, strict=False):
        if low is not None and high is not None:
            parts.append(element("line", x1=to_x(x), x2=to_x(x), y1=to_y(low), y2=to_y(high), class_="whisker"))
    if item.dots:
        for x, y in item.points:
            if y is not None:
                parts.append(element("circle", cx=to_x(x), cy=to_y(y), r=3.2, class_="point"))
    return element("g", *parts, class_=f"c{index % 6}")


def _legend(series: Sequence[Series]) -> Html:
    entries = []
    for index, item in enumerate(series):
        dash = _DASHES[index % len(_DASHES)] if item.line else None
        stroke = element("line", x1=1, x2=25, y1=5, y2=5, class_="line", stroke_dasharray=dash)
        key = element("svg", stroke, viewBox="0 0 26 10", class_=f"c{index % 6}", aria_hidden="true")
        entries.append(element("li", key, item.name))
    return element("ul", *entries, class_="legend")


def _spread(values: Sequence[float], margin: float) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if high == low:
        return low - 0.5, high + 0.5
    return low - margin * (high - low), high + margin * (high - low)


def _describe(series: Sequence[Series], x_label: str, y_label: str) -> str:
    ends = []
    for item in series:
        known = [(x, y) for x, y in item.points if y is not None]
        if known:
            (x0, y0), (x1, y1) = known[0], known[-1]
            ends.append(f"{item.name} from {format_number(y0)} at {x0:g} to {format_number(y1)} at {x1:g}")
    return f"{y_label} by {x_label}: " + ("; ".join(ends) or "no points") + "."


def strip(
    low_end: float,
    high_end: float,
    value: float,
    low: float | None,
    high: float | None,
    *,
    reference: float | None = None,
    colour: int = 0,
) -> Html:
    """A point with its interval on a scale, as wide as its cell; decorative, the figures stand beside it."""

    def place(x: float) -> float:
        return round(100 * min(1.0, max(0.0, (x - low_end) / (high_end - low_end))), 2)

    parts = []
    if reference is not None and low_end <= reference <= high_end:
        parts.append(element("span", class_="ref", style=f"left:{place(reference)}%"))
    if low is not None and high is not None:
        width = round(place(high) - place(low), 2)
        parts.append(element("span", class_="bar", style=f"left:{place(low)}%;width:{width}%"))
    parts.append(element("span", class_="dot", style=f"left:{place(value)}%"))
    return element("span", *parts, class_=f"strip c{colour % 6}", aria_hidden="true")


def bar(share: float, colour: int = 0, *, thin: bool = False) -> Html:
    """A horizontal bar of `share` in [0, 1] of its cell; decorative, the figure stands beside it."""
    fill = element("span", class_="fill", style=f"width:{round(100 * min(1.0, max(0.0, share)), 2)}%")
    return element("span", fill, class_=f"strip{' thin' if thin else ''} c{colour % 6}", aria_hidden="true")


def scale(low_end: float, high_end: float) -> Html:
    """Round numbers above a column of strips, each at its place."""
    shown = ticks(low_end, high_end, 4)
    labels = []
    for value in shown:
        place = 100 * (value - low_end) / (high_end - low_end)
        labels.append(element("span", tick_text(value, shown), style=f"left:{place:.2f}%"))
    return element("span", join(labels), class_="scale", aria_hidden="true")
