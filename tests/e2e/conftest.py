"""Fleets for end-to-end tests: real controllers, agents and serf agents, one fleet per module where tests allow it."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from shovey_trio.testing.fleet import Fleet, NodeSpec, open_fleet

_UP_WITHIN = 90.0
_DOWN_WITHIN = 60.0

OpenShared = Callable[..., Any]


@contextmanager
def shared_fleet(nodes: Sequence[NodeSpec], *, serf: bool, **options: Any) -> Iterator[Fleet]:
    """A fleet for several tests, each of which has an event loop of its own: it is kept by a thread with another.

    What the thread does between its start and its end is wait, so tests may start and end the fleet's processes.
    """
    up, down = threading.Event(), trio.Event()
    found: list[Fleet] = []
    failures: list[BaseException] = []
    token: list[trio.lowlevel.TrioToken] = []

    async def keep(directory: Path) -> None:
        token.append(trio.lowlevel.current_trio_token())
        async with open_fleet(directory, nodes, serf=serf, **options) as fleet:
            found.append(fleet)
            up.set()
            await down.wait()

    def run(directory: Path) -> None:
        try:
            trio.run(keep, directory)
        except BaseException as failure:
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


@pytest.fixture(autouse=True)
def hard_limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a traceback or a warning in any log of the fleets it used."""
    yield
    for value in request.node.funcargs.values():
        if isinstance(value, Fleet):
            assert value.noise() == []
