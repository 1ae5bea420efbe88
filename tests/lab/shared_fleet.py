"""A fleet that several event loops in a row may use: kept by a thread with a loop of its own."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import trio

from shovey_trio.demo.fleet import Fleet, NodeSpec, open_fleet

_UP_WITHIN = 90.0
_DOWN_WITHIN = 60.0

MakeNodes = Callable[[Path], Sequence[NodeSpec]]


def keep_fleet(make_nodes: MakeNodes, *, serf: bool, **options: Any) -> AbstractContextManager[Fleet]:
    """A fleet for the block, as ``keep`` keeps it.

    Args:
        make_nodes: from the fleet's directory to its nodes.
        serf: as for ``open_fleet``.
        options: of ``open_fleet``.
    """
    return keep(lambda directory: open_fleet(directory, make_nodes(directory), serf=serf, **options))


@contextmanager
def keep(open_it: Callable[[Path], AbstractAsyncContextManager[Fleet]]) -> Iterator[Fleet]:
    """What ``open_it`` opens, for the block, in a temporary directory. Blocks; for fixtures of a module.

    All the thread does between start and end is wait, so tests may start and end the fleet's processes.
    """
    up, down = threading.Event(), trio.Event()
    found: list[Fleet] = []
    failures: list[BaseException] = []
    token: list[trio.lowlevel.TrioToken] = []

    async def keep(directory: Path) -> None:
        token.append(trio.lowlevel.current_trio_token())
        async with open_it(directory) as fleet:
            found.append(fleet)
            up.set()
            await down.wait()

    def run(directory: Path) -> None:
        try:
            trio.run(keep, directory)
        except BaseException as failure:  # noqa: BLE001, ASYNC103 - raised again in the test's thread
            failures.append(failure)
        finally:
            up.set()

    with tempfile.TemporaryDirectory(prefix="shovey-e2e-") as directory:
        thread = threading.Thread(target=run, args=(Path(directory),), name="fleet", daemon=True)
        thread.start()
        try:
            assert up.wait(_UP_WITHIN), "the fleet did not come up"
            if failures:
                raise failures[0]
            yield found[0]
        finally:
            if thread.is_alive():
                token[0].run_sync_soon(down.set)
            thread.join(_DOWN_WITHIN)
            assert not thread.is_alive(), "the fleet did not end"
        if failures:
            raise failures[0]
