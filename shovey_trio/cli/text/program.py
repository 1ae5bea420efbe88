"""How each of the three programs ends: an exit code and, for whatever went wrong, one line on stderr."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Final

import click

from shovey_trio.core.errors import Exit

#: Set in the environment, it has the trace of what went wrong shown too.
TRACEBACK_VARIABLE: Final = "SHOVEY_TRACEBACK"

Explain = Callable[[BaseException], click.ClickException | None]


def run_program(cli: click.Command, name: str, arguments: Sequence[str], *, explain: Explain | None = None) -> int:
    """Run one command and return its exit code; nothing but ``SystemExit`` leaves it.

    Args:
        cli: the program.
        name: what it is called.
        arguments: what was typed behind the name.
        explain: what this program knows better about some errors; asked first.
    """
    try:
        result = cli.main(list(arguments), prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except SystemExit:
        raise
    except (Exception, BaseExceptionGroup, KeyboardInterrupt) as error:  # noqa: BLE001  # it is the last resort
        return _end(error, name, explain)
    return result if isinstance(result, int) else Exit.OK.value


def _end(error: BaseException, name: str, explain: Explain | None) -> int:
    from shovey_trio.cli.text.failures import Failed, failure_of, leaves

    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exception(error)
    found = list(leaves(error))
    for leaf in found:
        match leaf:
            case click.exceptions.Exit():
                return leaf.exit_code
            case click.ClickException():
                leaf.show()
                return leaf.exit_code
    if any(isinstance(leaf, KeyboardInterrupt | click.Abort) for leaf in found):
        return Exit.INTERRUPTED.value
    if any(isinstance(leaf, BrokenPipeError) for leaf in found):
        # Whoever read our output has gone; the interpreter's own flush at exit must not fail on it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OUTPUT_CLOSED.value
    for leaf in found:
        failed = (explain and explain(leaf)) or failure_of(leaf)
        if failed is not None:
            failed.show()
            return failed.exit_code
    bug = found[0]
    Failed(
        f"{name} has a bug: {type(bug).__name__}: {bug}",
        reason="INTERNAL",
        exit=Exit.INTERNAL,
        advice=f"please report it with what the same command says with {TRACEBACK_VARIABLE}=1 before it",
    ).show()
    return Exit.INTERNAL.value
