"""What came out of a run of mutmut in this directory, for ``tools/mutate.sh``: mutants.py SCOPE KEPT.

KEPT has a line for each mutant that may live: ``FUNCTION | REMOVED → ADDED | REASON``, as this program prints the first
two. A mutant of mutmut has no name that survives an edit, so its difference is its name.
"""

from __future__ import annotations

import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

from mutmut.__main__ import collect_source_file_mutation_data, status_by_exit_code
from mutmut.mutation.diff_apply import get_diff_for_mutant

_LEAST = 95.0
_TEXT = "TEXT"


def _tokens(line: str) -> list[str]:
    """The tokens of a line, text for people as one of its own kind."""
    found = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(line).readline):
            if token.string.strip():
                is_text = token.type == tokenize.STRING and " " in token.string.strip("frb").strip("\"'").strip("X")
                found.append(_TEXT if is_text else token.string)
    except (tokenize.TokenError, IndentationError):
        pass  # a line of a longer statement: what was read of it is enough to compare
    return found


def is_of_text(removed: str, added: str) -> bool:
    """Whether a text for people is changed, missing or None, and nothing else."""
    old, new = _tokens(removed), _tokens(added)
    if _TEXT not in old:
        return False
    for place, token in enumerate(old):
        if token == _TEXT:
            before, after = old[:place], old[place + 1 :]
            if new in (old, [*before, "None", *after], before + after, before + after[1:], before[:-1] + after):
                return True
    return old == new


def difference(name: str, path: Path) -> tuple[str, str]:
    """The lines that a mutant has not, and those it has instead."""
    lines = get_diff_for_mutant(name, path=path).splitlines()[2:]
    removed, added = (" ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in ("-", "+"))
    return removed, added


def mutants() -> Iterator[tuple[str, str, str, str]]:
    """Status, function, and difference of each mutant that counts."""
    found, _ = collect_source_file_mutation_data(mutant_names=())
    for data, name, exit_code in found:
        removed, added = difference(name, data.path)
        if not is_of_text(removed, added):
            function = name.rpartition("__mutmut_")[0].rpartition(".x")[2].strip("_ǁ").replace("ǁ", ".")
            yield status_by_exit_code[exit_code], function, removed, added


def main(scope: str, kept_file: str) -> int:
    """Prints the scope's figures and what lives without a reason; returns the exit code."""
    kept = {line.rpartition(" | ")[0] for line in Path(kept_file).read_text(encoding="utf-8").splitlines()}
    counted = killed = listed = 0
    unexplained = []
    for status, function, removed, added in mutants():
        counted += 1
        if status in ("killed", "timeout"):
            killed += 1
        elif (line := f"{function} | {removed} → {added}") in kept:
            listed += 1
        else:
            unexplained.append(line if status == "survived" else f"{line} [{status}]")
    share = 100 * killed / counted if counted else 0.0
    print(
        f"{scope}: {killed} of {counted} killed, {share:.1f} %; {listed} live for a reason, {len(unexplained)} without"
    )
    for line in unexplained:
        print(f"  {line}")
    return 0 if share >= _LEAST else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
