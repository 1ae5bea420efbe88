"""Being attached from a terminal: the live view, and what one, two and three Ctrl-C do.

Each test has a pseudo-terminal, and Ctrl-C is the byte that the key sends: the kernel makes the signal of it.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from lab.fake_controller import FakeRun
from shovey_trio.v1 import job_pb2

from .conftest import OperatorRig

CTRL_C = b"\x03"
_PROGRAM = (
    "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);from shovey_trio.cli.operator.main import main; main()"
)
_ESCAPES = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]")


@dataclass(eq=False)
class Terminal:
    """``shovey`` on a terminal, and all that it has written there."""

    process: trio.Process
    master: int
    written: bytes = b""

    @property
    def text(self) -> str:
        """What was written, without what only moves the cursor or sets colours."""
        return _ESCAPES.sub(b"", self.written).decode(errors="replace")

    async def until(self, wanted: str) -> None:
        """Read until ``wanted`` was written."""
        with trio.fail_after(30):
            while wanted not in self.text:
                assert await self._read(), f"the terminal closed before {wanted!r}: {self.text}"

    async def rest(self) -> int:
        """Read to the end; return the exit code."""
        with trio.fail_after(30):
            while await self._read():
                pass
            return await self.process.wait()

    async def press(self, key: bytes) -> None:
        await trio.lowlevel.wait_writable(self.master)
        os.write(self.master, key)

    async def _read(self) -> bytes:
        await trio.lowlevel.wait_readable(self.master)
        try:
            data = os.read(self.master, 65536)
        except OSError:  # EIO: nobody has the other side open any more
            return b""
        self.written += data
        return data


@asynccontextmanager
async def open_terminal(rig: OperatorRig, *arguments: str) -> AsyncIterator[Terminal]:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    environ = {key: value for key, value in rig.environ.items() if key != "COLUMNS"}
    try:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", _PROGRAM, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=environ,
        )
        os.close(slave)
        try:
            yield Terminal(process, master)
        finally:
            process.kill()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
                await process.wait()
    finally:
        os.close(master)


async def test_the_live_view_has_a_line_per_node_and_the_output_above(rig: OperatorRig) -> None:
    async with open_terminal(rig, "job", "start", "mixed", "web-1", "web-2") as terminal:
        assert await terminal.rest() == 1
    assert "web-2 | to stderr" in terminal.text
    lines = [line.split() for line in terminal.text.splitlines()]
    assert ["web-1", "succeeded"] in [line[:2] for line in lines]
    assert ["web-2", "failed", "(exit", "3)"] in [line[:4] for line in lines]
    assert ["1", "succeeded", "1", "failed"] in lines
    # The cursor that was hidden meanwhile is back.
    assert terminal.written.rindex(b"\x1b[?25h") > terminal.written.rindex(b"\x1b[?25l")


async def test_the_live_view_shows_the_last_line_while_the_command_runs(rig: OperatorRig) -> None:
    async with open_terminal(rig, "job", "start", "gated", "web-1") as terminal:
        await terminal.until("web-1 | before")
        await terminal.until("running")
        rig.gate.set()
        assert await terminal.rest() == 0
    assert "web-1 | after" in terminal.text


async def test_output_cannot_command_the_terminal(rig: OperatorRig) -> None:
    async def hostile(run: FakeRun) -> int:
        run.write(b"\x1b]0;stolen title\x07\x1b[2Jplain \x1b[31mred\x9b5n\xff\x00 end\n")
        await trio.lowlevel.checkpoint()
        return 0

    rig.controller.scripts["hostile"] = hostile
    async with open_terminal(rig, "job", "start", "hostile", "web-1") as terminal:
        assert await terminal.rest() == 0
    assert "web-1 | plain red\ufffd5n\ufffd\ufffd end" in terminal.text
    for forbidden in (b"stolen", b"\x1b[2J", b"\x00", b"\xff"):
        assert forbidden not in terminal.written
    async with open_terminal(rig, "job", "output", "last", "web-1") as terminal:
        assert await terminal.rest() == 0
    assert "plain red\ufffd5n\ufffd\ufffd end" in terminal.text
    assert b"\x1b" not in terminal.written


async def test_ctrl_c_once_detaches_and_the_job_goes_on(rig: OperatorRig) -> None:
    async with open_terminal(rig, "job", "start", "gated", "web-1") as terminal:
        await terminal.until("web-1 | before")
        await terminal.press(CTRL_C)
        await terminal.until("press Ctrl-C again to cancel the job")
        assert await terminal.rest() == 10
    (job,) = rig.controller.jobs
    assert f"come back with: shovey job watch {job}" in terminal.text
    assert not rig.controller.jobs[job].ended
    rig.gate.set()
    back = await rig.run("job", "watch", job)
    assert (back.code, back.out) == (0, "web-1 | before\nweb-1 | after\n")


async def test_ctrl_c_twice_cancels_the_job_and_waits_for_the_proof(rig: OperatorRig) -> None:
    rig.controller.hold_proof = trio.Event()
    async with open_terminal(rig, "job", "start", "hang", "web-1", "web-2") as terminal:
        await terminal.until("web-2 | started")
        await terminal.press(CTRL_C)
        await terminal.until("press Ctrl-C again to cancel the job")
        await terminal.press(CTRL_C)
        await terminal.until("waiting for the nodes' proof")
        await terminal.until("running (cancelling)")
        assert terminal.process.poll() is None
        rig.controller.hold_proof.set()
        assert await terminal.rest() == 1
    assert "cancelled (proof: empty_cgroup)" in terminal.text
    (job,) = rig.controller.jobs.values()
    assert job.message.state == job_pb2.JOB_STATE_CANCELLED


async def test_ctrl_c_a_third_time_leaves_at_once(rig: OperatorRig) -> None:
    rig.controller.hold_proof = trio.Event()
    async with open_terminal(rig, "job", "start", "hang", "web-1") as terminal:
        await terminal.until("web-1 | started")
        await terminal.press(CTRL_C)
        await terminal.until("press Ctrl-C again to cancel the job")
        await terminal.press(CTRL_C)
        await terminal.until("waiting for the nodes' proof")
        await terminal.until("running (cancelling)")
        await terminal.press(CTRL_C)
        assert await terminal.rest() == 130
    assert "come back with: shovey job watch" in terminal.text


async def test_a_cancel_that_is_denied_is_said_and_the_view_goes_on(rig: OperatorRig) -> None:
    async with open_terminal(rig, "job", "start", "gated", "web-1") as terminal:
        await terminal.until("web-1 | before")
        rig.controller.read_only = True
        await terminal.press(CTRL_C)
        await terminal.until("press Ctrl-C again to cancel the job")
        await terminal.press(CTRL_C)
        await terminal.until("the job was not cancelled")
        rig.gate.set()
        assert await terminal.rest() == 0


async def test_sigterm_detaches_and_gives_the_terminal_back(rig: OperatorRig) -> None:
    async with open_terminal(rig, "job", "start", "gated", "web-1") as terminal:
        await terminal.until("web-1 | before")
        terminal.process.send_signal(signal.SIGTERM)
        assert await terminal.rest() == 10
    assert terminal.written.rindex(b"\x1b[?25h") > terminal.written.rindex(b"\x1b[?25l")
    (job,) = rig.controller.jobs.values()
    assert not job.ended


async def test_ctrl_c_while_listing_is_exit_130(rig: OperatorRig) -> None:
    await rig.run("job", "start", "-b", "gated", "web-1")
    async with open_terminal(rig, "job", "output", "last") as terminal:
        await terminal.until("web-1 | before")
        await terminal.press(CTRL_C)
        assert await terminal.rest() == 130
    assert "Traceback" not in terminal.text


async def test_ctrl_c_before_the_answer_tells_the_request_id(rig: OperatorRig) -> None:
    rig.controller.hold_start = trio.Event()
    async with open_terminal(rig, "job", "start", "hello", "web-1", "--request-id", "mine") as terminal:
        with trio.fail_after(30):
            await rig.controller.start_asked.wait()
        await terminal.press(CTRL_C)
        assert await terminal.rest() == 130
    assert "--request-id mine starts it at most once" in terminal.text


async def test_a_dumb_terminal_gets_plain_lines(rig: OperatorRig) -> None:
    dumb = OperatorRig(controller=rig.controller, server=rig.server, environ={**rig.environ, "TERM": "dumb"})
    async with open_terminal(dumb, "job", "start", "hello", "web-1") as terminal:
        assert await terminal.rest() == 0
    assert "web-1 | hello from web-1\r\n" in terminal.text
    assert b"\x1b" not in terminal.written
