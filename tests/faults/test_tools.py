"""The tools that do the harm: failpoints and the relay do what a test asks of them, and nothing otherwise."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from lab.limits import within
from lab.relay import Relay, Weather, open_relay
from shovey_trio.observe import failpoints

PASS = """
import sys
from shovey_trio.observe import failpoints
for point in sys.argv[1:]:
    try:
        failpoints.passing(point)
        print("passed")
    except OSError as error:
        print(error.errno)
"""


def passing(plan: Path | None, *points: str) -> subprocess.CompletedProcess[str]:
    environ = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"]}
    if plan is not None:
        environ[failpoints.VARIABLE] = str(plan)
    return subprocess.run(
        [sys.executable, "-c", PASS, *points], env=environ, capture_output=True, text=True, check=False, timeout=30
    )


def test_failpoints_are_off_unless_the_environment_asks(tmp_path: Path) -> None:
    (tmp_path / "plan").write_text("a.b crash\n")
    assert passing(None, "a.b").stdout == "passed\n"
    assert passing(tmp_path / "plan", "a.b").returncode == -signal.SIGKILL


def test_a_failpoint_without_a_plan_or_not_in_it_is_passed(tmp_path: Path) -> None:
    assert passing(tmp_path / "plan", "a.b").stdout == "passed\n"
    (tmp_path / "plan").write_text("a.b crash\n")
    assert passing(tmp_path / "plan", "a.c", "a").stdout == "passed\npassed\n"


def test_a_failpoint_fires_after_its_skips_so_often_as_it_says_over_all_processes(tmp_path: Path) -> None:
    plan = tmp_path / "plan"
    plan.write_text("a.* error ENOSPC skip=1 times=2\n")
    told = "".join(passing(plan, "a.b", "a.c").stdout for _ in range(2))
    assert told.split() == ["passed", str(errno.ENOSPC), str(errno.ENOSPC), "passed"]
    assert failpoints.passes(str(plan), "a.*") == 4


def test_a_crash_happens_once_so_that_the_next_start_lives(tmp_path: Path) -> None:
    plan = tmp_path / "plan"
    plan.write_text("a.b crash\n")
    assert [passing(plan, "a.b").returncode for _ in range(2)] == [-signal.SIGKILL, 0]


@asynccontextmanager
async def echo() -> AsyncIterator[tuple[Relay, trio.SocketStream]]:
    async def serve(stream: trio.SocketStream) -> None:
        try:
            async for data in stream:
                await stream.send_all(data)
        except trio.BrokenResourceError:
            pass

    async with open_relay() as relay, trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        relay.target = listeners[0].socket.getsockname()[1]
        async with await trio.open_tcp_stream("127.0.0.1", relay.port) as stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
            yield relay, stream
        nursery.cancel_scope.cancel(reason="the test is over")


@within(20)
async def test_a_relay_that_cuts_ends_open_connections_and_refuses_new_ones() -> None:
    async with echo() as (relay, stream):
        relay.set_weather(Weather.CUT)
        with contextlib.suppress(trio.BrokenResourceError):
            assert await stream.receive_some() == b""
        async with await trio.open_tcp_stream("127.0.0.1", relay.port) as fresh:
            assert await fresh.receive_some() == b""
        relay.set_weather(Weather.FAIR)
        async with await trio.open_tcp_stream("127.0.0.1", relay.port) as fresh:
            await fresh.send_all(b"again")
            assert await fresh.receive_some() == b"again"


@pytest.mark.parametrize("weather", [Weather.SILENT, Weather.DEAF, Weather.MUTE])
@within(20)
async def test_a_relay_that_is_silent_loses_nothing_and_closes_nothing(weather: Weather) -> None:
    async with echo() as (relay, stream):
        relay.set_weather(weather)
        await stream.send_all(b"later")
        with trio.move_on_after(0.2) as waiting:
            await stream.receive_some()
        assert waiting.cancelled_caught
        relay.set_weather(Weather.FAIR)
        assert await stream.receive_some() == b"later"
