"""Fleets for end-to-end tests: real controllers, agents and serf agents, one fleet per module where tests allow it."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from shovey_trio.testing.fleet import Fleet, NodeSpec, open_fleet
from shovey_trio.testing.operator import Operator, open_operator

_UP_WITHIN = 90.0
_DOWN_WITHIN = 60.0

MakeNodes = Callable[[Path], Sequence[NodeSpec]]
KeepFleet = Callable[..., AbstractContextManager[Fleet]]


@contextmanager
def _keep_fleet(make_nodes: MakeNodes, *, serf: bool, **options: Any) -> Iterator[Fleet]:
    up, down = threading.Event(), trio.Event()
    found: list[Fleet] = []
    failures: list[BaseException] = []
    token: list[trio.lowlevel.TrioToken] = []

    async def keep(directory: Path) -> None:
        token.append(trio.lowlevel.current_trio_token())
        async with open_fleet(directory, make_nodes(directory), serf=serf, **options) as fleet:
            found.append(fleet)
            up.set()
            await down.wait()

    def run(directory: Path) -> None:
        try:
            trio.run(keep, directory)
        except BaseException as failure:  # noqa: BLE001 - raised again in the test's thread
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


@pytest.fixture(scope="session")
def keep_fleet() -> KeepFleet:
    """Makes a fleet for several tests, each of which has an event loop of its own: a thread with another keeps it.

    All that thread does between start and end is wait, so tests may start and end the fleet's processes. It is given
    a function from the fleet's directory to its nodes, and the options of ``open_fleet``.
    """
    return _keep_fleet


@pytest.fixture
async def operator(fleet: Fleet) -> AsyncIterator[Operator]:
    """The first admin of the module's fleet."""
    async with open_operator(fleet) as operator:
        yield operator


@pytest.fixture(autouse=True)
def quiet(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a traceback or a warning in any log of its module's fleet."""
    yield
    fleet = request.node.funcargs.get("fleet")
    if isinstance(fleet, Fleet):
        assert fleet.noise() == []
