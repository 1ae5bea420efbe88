"""Failpoints: named places at which a test makes this program die, fail or wait. Off unless the environment asks.

``SHOVEY_FAILPOINTS`` names a file with one line per point, read anew at every pass, so that a test switches a point
while the program runs::

    store.commit.before   crash
    spool.exit.*          error ENOSPC times=3
    store.commit.before   delay 0.5 skip=10

``crash`` is kill -9 of the process that passes, ``error`` raises an ``OSError``, ``delay`` blocks the thread. A name
may be a pattern (fnmatch). ``skip`` lets so many passes go by; ``times`` fires so often (a crash once, the rest
always, if not said). Passes are counted over all processes, in a file per line's name beside the plan: whether a point
was ever reached is also what a test asks.

Standard library's small modules alone: the supervisor process imports this too.
"""

from __future__ import annotations

import errno
import os
import signal
import time

VARIABLE = "SHOVEY_FAILPOINTS"
_FOR_EVER = 1 << 60

_plan = os.environ.get(VARIABLE)


def environment() -> dict[str, str]:
    """What a child process with an environment of its own must be given to pass the same points."""
    return {} if _plan is None else {VARIABLE: _plan}


def is_on() -> bool:
    """Whether any point can fire: for callers to whom even naming the point costs too much."""
    return _plan is not None


def passing(point: str) -> None:
    """Passes a point: does what the plan says of it, which is nothing when there is no plan.

    Blocks for as long as a ``delay`` says: in the trio thread that is a stall of the loop, which may be what is wanted.

    Args:
        point: its name; words with dots, from the part of the program to the side of the step.

    Raises:
        OSError: the one that the plan asks for.
    """
    if _plan is None:
        return
    for name, action, argument, options in _read(_plan):
        if not _matches(point, name):
            continue
        passed = _count(_plan, name)
        skip = int(options.get("skip", 0))
        times = int(options.get("times", 1 if action == "crash" else _FOR_EVER))
        if skip < passed <= skip + times:
            _act(point, action, argument)


def passes(plan: str, name: str) -> int:
    """How often a point or pattern of a plan was passed while the plan held it, in all processes."""
    try:
        return os.stat(_counter(plan, name)).st_size
    except FileNotFoundError:
        return 0


def _act(point: str, action: str, argument: str) -> None:
    match action:
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        case "delay":
            time.sleep(float(argument))
        case "error":
            number = getattr(errno, argument)
            raise OSError(number, f"{os.strerror(number)} (failpoint {point})")
        case _:
            raise ValueError(f"{_plan}: {action!r} is no action of a failpoint")


def _read(plan: str) -> list[tuple[str, str, str, dict[str, str]]]:
    try:
        with open(plan, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    entries = []
    for line in lines:
        words = line.split()
        if len(words) < 2 or words[0].startswith("#"):
            continue
        options = dict(word.split("=", 1) for word in words[2:] if "=" in word)
        argument = next((word for word in words[2:] if "=" not in word), "")
        entries.append((words[0], words[1], argument, options))
    return entries


def _matches(point: str, name: str) -> bool:
    if "*" not in name:
        return point == name
    from fnmatch import fnmatchcase  # compiles expressions: not for a process that is forked for every run

    return fnmatchcase(point, name)


def _count(plan: str, name: str) -> int:
    """Counts a pass and returns its number, from 1; appending is atomic, so no two passes get the same."""
    descriptor = os.open(_counter(plan, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, b".")
        return os.lseek(descriptor, 0, os.SEEK_CUR)
    finally:
        os.close(descriptor)


def _counter(plan: str, name: str) -> str:
    return f"{plan}.{name.replace('*', '+').replace('/', '_')}"
