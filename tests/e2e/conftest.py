"""Fleets for end-to-end tests: real controllers, agents and serf agents, one fleet per module where tests allow it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from lab import shared_fleet
from shovey_trio.demo.fleet import Fleet
from shovey_trio.demo.operator import Operator, open_operator

KeepFleet = Callable[..., AbstractContextManager[Fleet]]


@pytest.fixture(scope="session")
def keep_fleet() -> KeepFleet:
    """See ``lab.shared_fleet``."""
    return shared_fleet.keep_fleet


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
        noise = "\n\n".join(fleet.noise())
        assert not noise, noise
