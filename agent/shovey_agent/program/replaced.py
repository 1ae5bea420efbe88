"""How a long-lived part of the agent becomes a process of its own, and how that one ends.

The agent lives as long as its machine, and what reads its command line and its settings would be a sixth of its
memory. So the process that has read them becomes another one (same pid: systemd sees one throughout), which gets them
as plain values, in JSON, on its command line. Nothing in a plan is secret.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, TypeVar

from shovey_trio.core.errors import Exit, ShoveyError, first_leaf, words_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    class Plan(DataclassInstance, Protocol):
        """Settings as plain values."""

        @property
        def log_level(self) -> str: ...

        @property
        def log_format(self) -> Any: ...

    _P = TypeVar("_P", bound=Plan)

# Beside the loop there are threads that wait for the disk, and grpc's. For each that allocates, glibc would keep an
# arena of its own; they have little to do, and nothing of it at the same moment.
_ENVIRONMENT: Final = {"MALLOC_ARENA_MAX": "1"}


def become(module: str, plan: Plan) -> NoReturn:
    """Replaces this process by ``python -m module PLAN``.

    Raises:
        OSError: the interpreter cannot be started again.
    """
    # -P: nothing in the directory that somebody was in takes the place of a module.
    command = [sys.executable, "-P", "-m", module, json.dumps(asdict(plan))]
    os.execve(command[0], command, {**_ENVIRONMENT, **os.environ})  # noqa: S606 -- without a shell is the point


def run_replaced(run: Callable[[_P], Awaitable[None]], plan: _P) -> int:
    """Runs what a process has become, to its end; returns the exit code. What went wrong is one line on stderr."""
    import trio

    from shovey_trio.observe.logs import configure_logging

    configure_logging(level=plan.log_level, format_=plan.log_format)
    try:
        trio.run(run, plan)
    except (Exception, BaseExceptionGroup, KeyboardInterrupt) as error:  # noqa: BLE001  # sorted in ``_end``
        return _end(error)
    return 0


def _end(error: BaseException) -> int:
    import structlog

    known = (ShoveyError, OSError, KeyboardInterrupt)
    bugs = (
        error.split(known)[1] if isinstance(error, BaseExceptionGroup) else None if isinstance(error, known) else error
    )
    if bugs is not None:
        # Here and not by another start: what has happened after a week will not happen at once again.
        structlog.get_logger().error("agent.crashed", exc_info=error)
        error = bugs
    first = first_leaf(error)
    return Exit.INTERRUPTED.value if isinstance(first, KeyboardInterrupt) else tell(first)


def tell(failed: BaseException) -> int:
    """Says in one line on stderr what went wrong; returns the exit code."""
    reason = getattr(failed, "reason", type(failed).__name__)
    print(f"error: {words_of(failed)} ({reason})", file=sys.stderr)
    match failed:
        case ShoveyError():
            return failed.exit.value
        case OSError():
            return Exit.UNREACHABLE.value
        case _:
            return Exit.INTERNAL.value
