"""How samples become figures, and how a figure stands to its bar."""

from __future__ import annotations

import pytest

from shovey_trio.bench.figures import Bar, BarVerdict, figure, percentile, table


def test_median_p99_and_worst_are_those_of_the_samples() -> None:
    found = figure("a", [float(number) for number in range(200, 0, -1)])
    assert (found.count, found.median, found.p99, found.worst) == (200, 100.5, 198.0, 200.0)


def test_where_more_is_better_the_worst_is_the_smallest() -> None:
    found = figure("a", [3.0, 1.0, 2.0], unit="1/s", bar=Bar(at=2.0, at_least=True))
    assert (found.worst, found.p99, found.verdict) == (1.0, 1.0, BarVerdict.MET)


@pytest.mark.parametrize(
    ("samples", "bar", "verdict"),
    [
        ([1.0, 1.0, 9.0], Bar(at=1.0), BarVerdict.MET),
        ([1.0, 1.0, 9.0], Bar(at=1.0, of="worst"), BarVerdict.MISSED),
        ([1.0], Bar(at=2.0, stretch=1.0), BarVerdict.STRETCH),
        ([1.5], Bar(at=2.0, stretch=1.0), BarVerdict.MET),
        ([5.0], Bar(at=4.0, stretch=6.0, at_least=True), BarVerdict.MET),
        ([3.0], Bar(at=4.0, at_least=True), BarVerdict.MISSED),
        ([3.0], None, BarVerdict.NO_BAR),
    ],
)
def test_the_verdict_is_by_the_value_the_bar_names(samples: list[float], bar: Bar | None, verdict: BarVerdict) -> None:
    found = figure("a", samples, bar=bar)
    assert found.verdict is verdict
    assert found.document()["verdict"] == verdict.value


def test_nothing_measured_is_an_error_and_no_figure() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        figure("a", [])


def test_a_percentile_is_one_of_the_samples() -> None:
    assert [percentile([1.0, 2.0, 3.0, 4.0], share) for share in (0.01, 0.25, 0.26, 0.5, 0.99, 1.0)] == [
        1.0,
        1.0,
        2.0,
        2.0,
        4.0,
        4.0,
    ]


def test_the_table_names_simulated_agents_and_shows_short_times_in_milliseconds() -> None:
    lines = table([figure("a job", [0.0123], bar=Bar(at=0.1), simulated=True), figure("b", [2.5], unit="s")])
    assert lines[1].startswith("a job (simulated agents)")
    assert "12.3 ms" in lines[1]
    assert "median ≤ 100.0 ms" in lines[1]
    assert "2.5 s" in lines[2]
