"""Runs command lines of the three programs, each in a fork of one process that has them loaded; not a test itself.

Reads JSON from standard input, a list of ``[program, argument, …]``; writes one of ``[code, stdout, stderr]``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import click

from shovey_agent import cli as agent
from shovey_trio.cli.controller import main as controller
from shovey_trio.cli.operator import main as operator

MAINS: Final[dict[str, Callable[[], None]]] = {
    "shovey": operator.main,
    "shovey-trio": controller.main,
    "shovey-agent": agent.main,
}
PROGRAMS: Final = {"shovey": operator.cli, "shovey-trio": controller.cli, "shovey-agent": agent.cli}
# A command that waits for something it should not wait for is killed, and its code says so.
_LIMIT: Final = 20
#: The code of a command that left neither by ``SystemExit`` nor by a signal.
CRASHED: Final = 99


def commands() -> Iterator[tuple[list[str], click.Command]]:
    """Every command of the three programs, imported, with the words it is called by."""

    def walk(command: click.Command, words: list[str]) -> Iterator[tuple[list[str], click.Command]]:
        if not isinstance(command, click.Group):
            yield words, command
            return
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from walk(inner, [*words, name])

    for name, cli in PROGRAMS.items():
        yield from walk(cli, [name])


def run(line: Sequence[str]) -> tuple[int, str, str]:
    """How a command line ends and what it writes."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            _become(line, out.fileno(), err.fileno())
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        err.seek(0)
        return code, out.read().decode(errors="replace"), err.read().decode(errors="replace")


def _become(line: Sequence[str], out: int, err: int) -> None:
    code = CRASHED
    try:
        signal.alarm(_LIMIT)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.argv = list(line)
        MAINS[line[0]]()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    import shovey_trio.cli.operator.session
    import shovey_trio.cli.text.failures
    import shovey_trio.controller.daemon  # noqa: F401  # loaded once, and not in every fork

    list(commands())
    json.dump([run(line) for line in json.load(sys.stdin)], sys.stdout)
