"""What got slower between results of ``shovey-trio bench``, as ratios; ``tools/bench-compare.sh`` runs it.

``python bench/compare.py --before FILE… --after FILE… [--worse RATIO]``. A ratio is of the medians over the files;
above 1 it got worse, whichever way the figure counts. ``slower`` is said, and the exit code 1, when it is above
``--worse`` and even the best of the results after is worse than the worst before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One figure before and after; the values are medians of each result, in the figure's unit."""

    name: str
    unit: str
    before: list[float]
    after: list[float]
    more_is_better: bool

    @property
    def ratio(self) -> float:
        """How much worse it got: 2 is twice as bad, 0.5 half."""
        before, after = statistics.median(self.before), statistics.median(self.after)
        worse, better = (before, after) if self.more_is_better else (after, before)
        if better == 0:
            return 1.0 if worse == 0 else float("inf")
        return worse / better

    def is_worse(self, limit: float) -> bool:
        """Whether it got worse by more than the limit, and by more than its results differ among themselves."""
        apart = max(self.after) < min(self.before) if self.more_is_better else min(self.after) > max(self.before)
        return apart and self.ratio > limit


def compare(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[Compared]:
    """Every figure that all of the results have, in the order of the first."""
    earlier, later = [_figures(each) for each in before], [_figures(each) for each in after]
    return [
        Compared(
            name=f"{scenario}: {name}",
            unit=about["unit"],
            before=[each[scenario, name]["median"] for each in earlier],
            after=[each[scenario, name]["median"] for each in later],
            more_is_better=bool(about["bar"] and about["bar"]["at_least"]),
        )
        for (scenario, name), about in earlier[0].items()
        if all((scenario, name) in each for each in (*earlier, *later))
    ]


def _figures(result: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (scenario, each["name"]): each
        for scenario, measured in result["scenarios"].items()
        for each in measured["figures"]
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, nargs="+", required=True)
    parser.add_argument("--after", type=Path, nargs="+", required=True)
    parser.add_argument("--worse", type=float, default=1.15, metavar="RATIO")
    given = parser.parse_args()
    before, after = ([json.loads(file.read_text()) for file in files] for files in (given.before, given.after))
    rows = compare(before, after)
    if not rows:
        print("the results have no figure in common", file=sys.stderr)
        return 2
    width = max(len(row.name) for row in rows)
    print(f"{'':{width}}  {'before':>10} {'after':>10}        ratio")
    for row in rows:
        verdict = "slower" if row.is_worse(given.worse) else ""
        medians = f"{statistics.median(row.before):>10.4g} {statistics.median(row.after):>10.4g} {row.unit:6}"
        print(f"{row.name:{width}}  {medians} {row.ratio:>6.2f}  {verdict}".rstrip())
    return int(any(row.is_worse(given.worse) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
