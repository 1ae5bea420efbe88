"""``python -m fuzz``: runs targets under atheris, each in a process of its own.

libFuzzer ends its process however it ends, and keeps one target's state for good; so this process only imports what is
fuzzed, with coverage built in, and forks for each target. Prints a line per target; exits 1 when there was a find, and
names the file that holds the input.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import atheris

with atheris.instrument_imports(include=["shovey_trio", "shovey_agent", "fuzz.", "luqum", "h11", "msgpack"]):
    from fuzz.table import TARGETS

if TYPE_CHECKING:
    from fuzz.target import Target

# Seconds for one input: a thousand times what the slowest takes, so that a busy machine is no find.
_INPUT_SECONDS: Final = 20
# Seconds of a run that is counted in inputs: whoever has started it may have given up.
_LONGEST: Final = 600
_MEMORY_MB: Final = 1024
_FOUND: Final = 77
_STAT: Final = re.compile(r"stat::(\w+):\s+(\d+)")
_COVERAGE: Final = re.compile(r"cov: (\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long each target runs: so many seconds, or so many inputs (None: its short run); and from which seed."""

    seconds: int = 0
    runs: int | None = -1
    seed: int = 0


def main(arguments: list[str] | None = None) -> int:
    """Runs the targets that the command line names, or all of them; returns the exit status."""
    parser = argparse.ArgumentParser(prog="fuzz", description="Coverage-guided fuzzing of every decoder.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all of them when none is named")
    parser.add_argument("--seconds", type=int, default=0, help="how long each target runs; 60 when nothing is said")
    parser.add_argument("--runs", type=int, default=-1, help="how many inputs each target gets at most")
    parser.add_argument("--short", action="store_true", help="as many inputs as each target has in its short run")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers; 0 takes another one each time")
    parser.add_argument("--corpus", type=Path, help="directory that keeps what was found interesting, by target")
    parser.add_argument("--list", action="store_true", help="names the targets")
    parser.add_argument("--input", type=Path, help="gives this one file to the one target, outside of the fuzzer")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.targets if name not in TARGETS]:
        parser.error(f"no such target: {', '.join(unknown)}")
    if given.list:
        print("\n".join(TARGETS))
        return 0
    if given.input is not None:
        if len(given.targets) != 1:
            parser.error("--input needs one target")
        TARGETS[given.targets[0]](given.input.read_bytes())
        return 0
    seconds = given.seconds if given.seconds or given.runs >= 0 or given.short else 60
    budget = Budget(seconds=seconds, runs=None if given.short else given.runs, seed=given.seed)
    finds = [name for name in given.targets or TARGETS if not _run(TARGETS[name], budget, given.corpus)]
    if finds:
        print(f"finds in: {', '.join(finds)}")
    return 1 if finds else 0


def _run(target: Target, budget: Budget, kept: Path | None) -> bool:
    """Fuzzes one target; whether nothing was found."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        work = Path(scratch)
        seeds, found = work / "seeds", work / "found"
        seeds.mkdir()
        found.mkdir()
        for number, seed in enumerate(target.seeds()):
            (seeds / str(number)).write_bytes(seed[: target.max_len])
        corpus = [str(seeds)]
        if kept is not None:
            directory = kept / target.name
            directory.mkdir(parents=True, exist_ok=True)
            corpus.insert(0, str(directory))
        else:
            # What one process has found interesting, the next one begins with.
            (work / "kept").mkdir()
            corpus.insert(0, str(work / "kept"))
        log, began = work / "log", time.monotonic()
        done = 0
        while True:
            spent = round(time.monotonic() - began)
            left = replace(budget, seconds=max(budget.seconds - spent, 1) if budget.seconds else 0)
            status = _in_a_process(target, left, corpus, found, log)
            text = log.read_text("utf-8", "replace") if log.exists() else ""
            done += int(dict(_STAT.findall(text)).get("number_of_executed_units", 0))
            if status or target.per_process < 0 or time.monotonic() - began >= budget.seconds:
                break
        print(_summary(target, status, text, done, time.monotonic() - began), flush=True)
        if status == 0:
            return True
        print(text[-4000:])
        for file in found.iterdir():
            where = Path(f"fuzz-{target.name}-{file.name}")
            shutil.copy(file, where)
            print(f"input: {where} ({file.stat().st_size} bytes) {file.read_bytes()[:200]!r}")
        return False


def _in_a_process(target: Target, budget: Budget, corpus: list[str], found: Path, log: Path) -> int:
    """Fuzzes in a process of its own; how that ended."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _become_fuzzer(target, budget, corpus, found, log)
    return os.waitpid(child, 0)[1]


def _become_fuzzer(target: Target, budget: Budget, corpus: list[str], found: Path, log: Path) -> None:
    """Turns this process into the fuzzer of one target; does not return."""
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        options = [
            "fuzz",
            f"-max_len={target.max_len}",
            f"-timeout={_INPUT_SECONDS}",
            f"-rss_limit_mb={_MEMORY_MB}",
            f"-artifact_prefix={found}/",
            f"-max_total_time={budget.seconds or _LONGEST}",
            f"-runs={_runs(target, budget)}",
            "-print_final_stats=1",
            "-verbosity=1",
        ]
        if budget.seed:
            options.append(f"-seed={budget.seed}")
        atheris.Setup([*options, *corpus], partial(_guarded, target, found))
        atheris.Fuzz()
    finally:
        os._exit(70)  # the fuzzer ends the process itself; whoever gets here has failed


def _runs(target: Target, budget: Budget) -> int:
    if budget.runs is None:
        return target.short
    return budget.runs if budget.runs >= 0 else target.per_process


def _guarded(target: Target, found: Path, data: bytes) -> None:
    """Keeps the input of a find; libFuzzer itself keeps that of a hang, and of one that takes too much memory."""
    try:
        target(data)
    except BaseException:  # noqa: BLE001, ASYNC103 - whatever it is, it is a find; nothing is cancelled here
        traceback.print_exc()
        (found / "exception").write_bytes(data)
        sys.stderr.flush()
        os._exit(_FOUND)


def _summary(target: Target, status: int, log: str, inputs: int, seconds: float) -> str:
    stats = {name: int(value) for name, value in _STAT.findall(log)}
    coverage = _COVERAGE.findall(log)
    return (
        f"{target.name:24} {'ok' if status == 0 else 'FIND':4} {inputs:>9} inputs"
        f" {seconds:7.1f} s  coverage {coverage[-1] if coverage else '?':>5}"
        f"  slowest {stats.get('slowest_unit_time_sec', 0)} s  memory {stats.get('peak_rss_mb', 0)} MB"
    )


if __name__ == "__main__":
    sys.exit(main())
