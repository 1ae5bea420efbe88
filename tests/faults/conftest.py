"""Benches for fault tests: a real daemon and real agents behind a relay, with failpoints in all of them."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.faults import FaultBench, open_bench

OpenBench = Callable[..., AbstractAsyncContextManager[FaultBench]]


@pytest.fixture
def bench_of() -> OpenBench:
    """Opens a bench in a directory of its own; short, because paths go into sockets and commands."""

    @asynccontextmanager
    async def open_(**options: Any) -> AsyncIterator[FaultBench]:
        with tempfile.TemporaryDirectory(prefix="shovey-faults-") as directory:
            async with open_bench(Path(directory), **options) as bench:
                yield bench

    return open_
