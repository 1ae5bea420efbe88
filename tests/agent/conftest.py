"""What the executor's tests share: real commands, real supervisors, and the check that nothing of them is left."""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from shovey_agent.run.executor import Executor, ExecutorConfig, open_executor
from shovey_agent.run.runs import Accepted, Finished, KnownRun, OutputGrown, RunEvent, RunSpec, Started
from shovey_agent.supervisor.proc_posix import ProcessStat, all_processes, signal_process
from shovey_trio.core.jobs.events import RunReport
from shovey_trio.core.jobs.model import OutputChunk, StreamName

PYTHON = (sys.executable, "-I", "-S", "-c")

# Every command of this test process carries it, so that what is left can be found.
_NODE = f"test-{uuid.uuid4().hex}"


class Runner:
    """An executor with its events sorted by run, and the shorthands that make a test read as its rule."""

    def __init__(self, executor: Executor, state_dir: Path) -> None:
        self.executor = executor
        self.state_dir = state_dir
        self._seen: dict[str, list[RunEvent]] = {}

    def spec(self, *argv: str, run_id: str = "", timeout: float = 60.0, grace: float = 5.0, **more: Any) -> RunSpec:
        return RunSpec(
            run_id=run_id or f"run-{uuid.uuid4().hex}",
            job_id="job-1",
            node=_NODE,
            command="test",
            argv=argv,
            timeout=timeout,
            grace=grace,
            **more,
        )

    async def start(self, *argv: str, **more: Any) -> str:
        spec = self.spec(*argv, **more)
        outcome = await self.executor.start(spec)
        assert isinstance(outcome, Accepted), outcome
        return spec.run_id

    async def python(self, program: str, *arguments: str, **more: Any) -> str:
        return await self.start(*PYTHON, program, *arguments, **more)

    async def finished(self, run_id: str) -> RunReport:
        event = await self._next(run_id, Finished)
        assert isinstance(event, Finished)
        return event.report

    async def started(self, run_id: str) -> Started:
        event = await self._next(run_id, Started)
        assert isinstance(event, Started)
        return event

    async def run(self, *argv: str, **more: Any) -> RunReport:
        return await self.finished(await self.start(*argv, **more))

    async def grown(self, run_id: str, wanted: bytes) -> None:
        """Waits until the output of a run has something in it."""
        self.executor.set_poll_interval(run_id, 0.02)
        while wanted not in await self.output(run_id):
            await self._next(run_id, OutputGrown)

    async def chunks(self, run_id: str, position: int = 0, limit: int = 1 << 40) -> tuple[OutputChunk, ...]:
        return await self.executor.read_output(run_id, position, limit)

    async def output(self, run_id: str, stream: StreamName = StreamName.STDOUT) -> bytes:
        return b"".join(chunk.data for chunk in await self.chunks(run_id) if chunk.stream is stream)

    def known(self, run_id: str) -> KnownRun:
        known = self.executor.known_run(run_id)
        assert known is not None
        return known

    def directory(self, run_id: str) -> Path:
        return self.state_dir / "runs" / run_id

    async def _next(self, run_id: str, kind: type[RunEvent]) -> RunEvent:
        waiting = self._seen.setdefault(run_id, [])
        while True:
            for event in waiting:
                if isinstance(event, kind):
                    waiting.remove(event)
                    return event
            event = await self.executor.events.receive()
            owner = event.report.run_id if isinstance(event, Finished) else event.run_id
            self._seen.setdefault(owner, []).append(event)


OpenRunner = Callable[..., AbstractAsyncContextManager[Runner]]


@pytest.fixture
def open_runner(tmp_path: Path) -> OpenRunner:
    """Opens an executor on the test's state directory, again and again if wanted."""

    @asynccontextmanager
    async def open_(*, hard_limit: float = 30.0, **settings: Any) -> AsyncIterator[Runner]:
        with trio.fail_after(hard_limit):
            config = ExecutorConfig(state_dir=tmp_path / "state", **settings)
            async with open_executor(config) as executor:
                runner = Runner(executor, config.state_dir)
                await executor.adopt()
                yield runner

    return open_


@pytest.fixture(autouse=True)
def nothing_survives() -> Iterator[Callable[[], list[ProcessStat]]]:
    """Gives a test the way to look for its commands, and fails one that leaves a command behind."""
    yield our_processes
    left = our_processes()
    names = [Path(f"/proc/{stat.pid}/cmdline").read_bytes() for stat in left if os.path.exists(f"/proc/{stat.pid}")]
    for stat in left:
        signal_process(stat, signal.SIGKILL)
    assert not names


def our_processes() -> list[ProcessStat]:
    """Finds the living commands of this test process, however they have wandered off."""
    marker = f"SHOVEY_NODE={_NODE}".encode()
    found = []
    for stat in all_processes():
        try:
            environment = Path(f"/proc/{stat.pid}/environ").read_bytes()
        except OSError:
            continue
        if not stat.is_dead and marker in environment.split(b"\0"):
            found.append(stat)
    return found
