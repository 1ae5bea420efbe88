"""Measured figures: how samples become one line of a table and one object of JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class BarVerdict(StrEnum):
    """How a figure stands to its bar."""

    STRETCH = "stretch"
    MET = "met"
    MISSED = "missed"
    NO_BAR = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What a figure is held against.

    Attributes:
        at: the bar, in the figure's unit.
        stretch: what would be better still.
        at_least: whether more is better; else less is.
        of: which of the figure's values counts: ``median``, ``p99`` or ``worst``.
    """

    at: float
    stretch: float | None = None
    at_least: bool = False
    of: str = "median"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured quantity.

    Attributes:
        name: what was measured.
        unit: of ``median``, ``p99`` and ``worst``: ``s``, ``MiB``, ``1/s`` …
        count: how many samples.
        median, p99, worst: of the samples. ``worst`` is the largest, or the smallest where more is better.
        simulated: whether agents were simulated (real protocol, TLS and signatures, but no process runs).
    """

    name: str
    unit: str
    count: int
    median: float
    p99: float
    worst: float
    bar: Bar | None = None
    simulated: bool = False

    @property
    def verdict(self) -> BarVerdict:
        if self.bar is None:
            return BarVerdict.NO_BAR
        value: float = getattr(self, self.bar.of)
        if self.bar.stretch is not None and _within(value, self.bar.stretch, self.bar):
            return BarVerdict.STRETCH
        return BarVerdict.MET if _within(value, self.bar.at, self.bar) else BarVerdict.MISSED

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "verdict": self.verdict.value}


def figure(
    name: str, samples: Iterable[float], *, unit: str = "s", bar: Bar | None = None, simulated: bool = False
) -> Figure:
    """A figure of these samples.

    Raises:
        ValueError: there are none.
    """
    ordered = sorted(samples)
    if not ordered:
        raise ValueError(f"nothing was measured for {name!r}")
    more = bar is not None and bar.at_least
    return Figure(
        name=name,
        unit=unit,
        count=len(ordered),
        median=statistics.median(ordered),
        p99=percentile(ordered, 0.01 if more else 0.99),
        worst=ordered[0] if more else ordered[-1],
        bar=bar,
        simulated=simulated,
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that ``share`` of the sorted, non-empty samples do not exceed (nearest rank)."""
    return ordered[max(math.ceil(len(ordered) * share), 1) - 1]


def table(figures: Sequence[Figure]) -> list[str]:
    """Aligned lines, a title first. Times are shown in milliseconds below one second."""
    rows = [["", "n", "median", "p99", "worst", "bar", ""]]
    for each in figures:
        bar = ""
        if each.bar is not None:
            sign = "≥" if each.bar.at_least else "≤"
            bar = f"{each.bar.of} {sign} {_shown(each.bar.at, each.unit)}"
        rows.append(
            [
                f"{each.name} (simulated agents)" if each.simulated else each.name,
                str(each.count),
                _shown(each.median, each.unit),
                _shown(each.p99, each.unit),
                _shown(each.worst, each.unit),
                bar,
                each.verdict.value,
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column in (0, 5, 6) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _within(value: float, limit: float, bar: Bar) -> bool:
    return value >= limit if bar.at_least else value <= limit


def _shown(value: float, unit: str) -> str:
    if unit == "s" and value < 1:
        return f"{value * 1000:.1f} ms"
    return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"
