"""Small charts as SVG text: axes, lines, dots and bands; colours and fonts come from the page's style sheet.

Charts have one of two sizes, chosen so that their text is readable on a phone without scaling.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

LARGE, SMALL = (340, 232), (220, 184)
LEFT, RIGHT, TOP, BOTTOM = 46, 18, 24, 38
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Axis:
    """A range of values and what they are."""

    low: float
    high: float
    label: str
    log: bool = False

    @classmethod
    def around(cls, values: Iterable[np.ndarray], label: str, log: bool = False) -> Axis:
        """An axis that holds all finite values, positive ones if logarithmic, with a little room around them."""
        joined = np.concatenate([np.zeros(0), *(np.ravel(v) for v in values)])
        joined = joined[np.isfinite(joined) & (~np.array(log) | (joined > 0))]
        if not len(joined):
            return cls(1e-3, 1.0, label, log) if log else cls(0.0, 1.0, label)
        low, high = float(joined.min()), float(joined.max())
        if log:
            room = max((high / low) ** 0.06, 1.15)
            return cls(low / room, high * room, label, True)
        room = 0.05 * (high - low) or 0.5 * abs(high) or 1.0
        return cls(low - room, high + room, label)

    def place(self, values: np.ndarray | Sequence[float]) -> np.ndarray:
        """Values as shares of the axis, 0 at its beginning and 1 at its end; NaN where there is no place."""
        values = np.asarray(values, float)
        ends = np.array([self.low, self.high])
        if self.log:
            with np.errstate(all="ignore"):
                values, ends = np.where(values > 0, np.log(values), np.nan), np.log(ends)
        return (values - ends[0]) / (ends[1] - ends[0])

    def ticks(self, count: int = 5) -> list[float]:
        """About so many round values."""
        if not self.log:
            return _linear_ticks(self.low, self.high, count)
        decades = range(int(np.floor(np.log10(self.low))), int(np.ceil(np.log10(self.high))) + 1)
        step = -(-len(decades) // 6)
        for steps in ((1,), (1, 3), (1, 2, 5)):
            found = [m * 10.0**d for d in decades[::step] for m in steps if self.low <= m * 10.0**d <= self.high]
            if len(found) >= 3:
                return found
        return _linear_ticks(self.low, self.high, 1.5 * count)  # less than a decade


def _linear_ticks(low: float, high: float, count: float) -> list[float]:
    raw = (high - low) / count
    power = 10.0 ** np.floor(np.log10(raw))
    step = power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = int(np.ceil(low / step - 1e-9))
    return [float(n * step) for n in range(first, int(np.floor(high / step + 1e-9)) + 1)]


def tick_text(value: float) -> str:
    """A round number, short; powers of ten where it would be long."""
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        exponent = int(np.floor(np.log10(abs(value)) + 1e-9))
        factor = value / 10.0**exponent
        lead = "" if abs(factor - 1) < 1e-9 else f"{factor:g}×"
        return f"{lead}10{str(exponent).translate(SUPERSCRIPTS)}".replace("-", "−")
    return f"{round(value, 6):,g}".replace("-", "−") if abs(value) < 1e4 else f"{value:,.0f}".replace("-", "−")


@dataclass(frozen=True)
class Frame:
    """Two axes on which marks are drawn; each method returns SVG text."""

    x: Axis
    y: Axis
    size: tuple[int, int] = LARGE

    @property
    def inner(self) -> tuple[int, int]:
        """Width and height between the axes."""
        return self.size[0] - LEFT - RIGHT, self.size[1] - TOP - BOTTOM

    def line(self, xs: np.ndarray | Sequence[float], ys: np.ndarray | Sequence[float], style: str) -> str:
        """A line through the points, interrupted where there is no value."""
        across, up = self._pixels(xs, ys)
        parts, pen = [], "M"
        for a, u in zip(across, up, strict=True):
            if np.isfinite(a) and np.isfinite(u):
                parts.append(f"{pen}{a:.1f} {u:.1f}")
                pen = "L"
            else:
                pen = "M"
        return f'<path class="line {style}" d="{"".join(parts)}"/>'

    def dots(self, xs: np.ndarray | Sequence[float], ys: np.ndarray | Sequence[float], style: str) -> str:
        """Dots, one for each half pixel that is hit, however many points there are."""
        both = np.stack(self._pixels(xs, ys), axis=1)
        inside = both[np.isfinite(both).all(axis=1)]
        inside = inside[((inside >= 0) & (inside <= self.inner)).all(axis=1)]
        places = np.unique(np.round(2 * inside).astype(int), axis=0) / 2
        style += " few" if len(places) < 300 else ""
        return f'<path class="dots {style}" d="{"".join(f"M{a:g} {u:g}h0" for a, u in places)}"/>'

    def dot(self, x: float, y: float, style: str) -> str:
        """One dot that stands out."""
        ((across,), (up,)) = self._pixels([x], [y])
        if not (np.isfinite(across) and np.isfinite(up)):
            return ""
        return f'<circle class="mark {style}" cx="{across:.1f}" cy="{up:.1f}" r="4"/>'

    def band(self, low: float, high: float, style: str) -> str:
        """A vertical band over a range of x."""
        start, end = np.clip(self.x.place([low, high]), 0, 1) * self.inner[0]
        return f'<rect class="band {style}" x="{start:.1f}" y="0" width="{end - start:.1f}" height="{self.inner[1]}"/>'

    def vertical(self, x: float, style: str) -> str:
        """A vertical line across the whole chart."""
        place = self.x.place([x])[0] * self.inner[0]
        return f'<path class="rule {style}" d="M{place:.1f} 0V{self.inner[1]}"/>'

    def horizontal(self, y: float, style: str) -> str:
        """A horizontal line across the whole chart."""
        place = (1 - self.y.place([y])[0]) * self.inner[1]
        return f'<path class="rule {style}" d="M0 {place:.1f}H{self.inner[0]}"/>'

    def draw(self, title: str, marks: Iterable[str]) -> str:
        """The whole chart; what reaches over the axes is cut off."""
        (width, height), (inner_width, inner_height) = self.size, self.inner
        return (
            f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{self._grid()}'
            f'<svg x="{LEFT}" y="{TOP}" width="{inner_width}" height="{inner_height}">{"".join(marks)}</svg></svg>'
        )

    def _pixels(
        self, xs: np.ndarray | Sequence[float], ys: np.ndarray | Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pixels from the upper left of the inner part, never so far out that a browser would stumble."""
        across = np.clip(self.x.place(xs), -9, 10) * self.inner[0]
        up = (1 - np.clip(self.y.place(ys), -9, 10)) * self.inner[1]
        return across, up

    def _grid(self) -> str:
        """Thin lines with their values, the labels of the axes at their ends."""
        (width, height), count = self.inner, 5 if self.size == LARGE else 3
        parts, base = [], TOP + height
        for value in self.y.ticks(count):
            place = TOP + (1 - self.y.place([value])[0]) * height
            parts.append(f'<path class="grid" d="M{LEFT} {place:.1f}h{width}"/>')
            parts.append(f'<text class="end" x="{LEFT - 6}" y="{place + 3.8:.1f}">{tick_text(value)}</text>')
        parts.append(f'<path class="axis" d="M{LEFT} {base}h{width}"/>')
        for value in self.x.ticks(count):
            place = LEFT + self.x.place([value])[0] * width
            parts.append(f'<path class="axis" d="M{place:.1f} {base}v4"/>')
            parts.append(f'<text class="middle" x="{place:.1f}" y="{base + 16}">{tick_text(value)}</text>')
        parts.append(f'<text class="label" x="0" y="11">{escape(self.y.label)}</text>')
        parts.append(f'<text class="label end" x="{LEFT + width}" y="{base + 32}">{escape(self.x.label)}</text>')
        return "".join(parts)


def bar(share: float, style: str) -> str:
    """A horizontal bar for a table's cell, as wide as its share of it."""
    return (
        f'<svg class="bar"><rect class="{style}" width="{100 * min(max(share, 0.0), 1.0):.1f}%" height="100%"/></svg>'
    )
