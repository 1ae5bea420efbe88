"""Output: exact, whatever it is and however fast it comes, within the cap and, where the cap cuts, honestly cut."""

from __future__ import annotations

import hashlib
import os
import resource
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from shovey_agent.run.runs import ExitCause
from shovey_agent.run.spool import SpoolLimits
from shovey_agent.supervisor.proc_posix import descendants
from shovey_trio.core.jobs.model import OutputChunk, StreamName

from .conftest import OpenRunner

_RANDOM = (
    "import os, sys, random\n"
    "data = random.Random(int(sys.argv[1])).randbytes(int(sys.argv[2]))\n"
    "for stream in (1, 2):\n"
    "    view = memoryview(data)\n"
    "    while view: view = view[os.write(stream, view):]\n"
)


@pytest.mark.parametrize("size", [1, 4096, 65_535, 65_536, 65_537, 3_000_000])
async def test_random_bytes_of_both_streams_are_identical(open_runner: OpenRunner, size: int) -> None:
    import random

    async with open_runner() as runner:
        run_id = await runner.python(_RANDOM, "7", str(size))
        report = await runner.finished(run_id)
        expected = random.Random(7).randbytes(size)
        assert await runner.output(run_id, StreamName.STDOUT) == expected
        assert await runner.output(run_id, StreamName.STDERR) == expected
        assert (report.output_bytes, report.dropped_bytes) == (2 * size, 0)


async def test_line_of_ten_megabytes_and_nuls_and_broken_utf8_are_identical(open_runner: OpenRunner) -> None:
    expected = b"x" * 10_000_000 + b"\n" + b"\0" * 1000 + b"\xc3" + "ü€😀".encode() * 333 + b"\xff\xfe"
    program = (
        "import sys; sys.stdout.buffer.write("
        "b'x' * 10_000_000 + b'\\n' + b'\\0' * 1000 + b'\\xc3' + 'ü€😀'.encode() * 333 + b'\\xff\\xfe')"
    )
    async with open_runner() as runner:
        run_id = await runner.python(program)
        await runner.finished(run_id)
        assert hashlib.sha256(await runner.output(run_id)).digest() == hashlib.sha256(expected).digest()


async def test_fast_output_just_before_the_end_is_complete_a_hundred_times(open_runner: OpenRunner) -> None:
    # Fault 1 of the reference keeps 3 to 15 kB of these 200 kB.
    async with open_runner() as runner:
        for _ in range(100):
            run_id = await runner.start("sh", "-c", "yes 0123456789 | head -c 200000")
            await runner.finished(run_id)
            output = await runner.output(run_id)
            assert len(output) == 200_000
            assert output == (b"0123456789\n" * 18_182)[:200_000]
            await runner.executor.forget(run_id)


async def test_positions_and_offsets_are_the_same_from_wherever_one_reads(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        run_id = await runner.start("sh", "-c", "for i in 1 2 3; do seq $i 9999; seq $i 99 >&2; done")
        await runner.finished(run_id)
        whole = await runner.chunks(run_id)
        flat = b"".join(chunk.data for chunk in whole)
    async with open_runner() as reader:  # another process of the agent would see the same files
        for position in (0, 1, 17, len(flat) // 2, len(flat) - 1, len(flat), len(flat) + 5):
            for limit in (1, 1000, len(flat)):
                chunks = await reader.chunks(run_id, position, limit)
                assert b"".join(chunk.data for chunk in chunks) == flat[position : position + limit]
                assert all(0 < len(chunk.data) <= 65_536 for chunk in chunks)
                expected = position
                for chunk in chunks:
                    assert chunk.position == expected
                    expected += len(chunk.data)
        offsets = dict.fromkeys(StreamName, 0)
        for chunk in await reader.chunks(run_id):
            assert chunk.stream_offset == offsets[chunk.stream]
            offsets[chunk.stream] += len(chunk.data)


async def test_cap_keeps_head_and_tail_and_counts_what_lies_between(open_runner: OpenRunner) -> None:
    limits = SpoolLimits(head_cap=100_000, tail_cap=80_000)
    program = "import sys; sys.stdout.buffer.write(b''.join(b'%09d\\n' % i for i in range(500_000)))"
    expected = b"".join(b"%09d\n" % number for number in range(500_000))
    async with open_runner(limits=limits) as runner:
        run_id = await runner.python(program)
        report = await runner.finished(run_id)
        chunks = await runner.chunks(run_id)
        size = (runner.directory(run_id) / "output").stat().st_size
    assert size <= 100_000 + 80_000 + 65_536
    kept = sum(len(chunk.data) for chunk in chunks)
    assert report.dropped_bytes == len(expected) - kept > 0
    assert report.output_bytes == kept
    assert [chunk.dropped_before for chunk in chunks if chunk.dropped_before] == [report.dropped_bytes]
    _compare(chunks, expected)


async def test_a_cap_of_the_entry_stands_in_place_of_the_agents(open_runner: OpenRunner) -> None:
    async with open_runner(limits=SpoolLimits(head_cap=1000, tail_cap=1000)) as runner:
        whole = await runner.run("head", "-c", "300000", "/dev/zero", output_cap=400_000)
        cut = await runner.run("head", "-c", "300000", "/dev/zero", output_cap=100_000)
    assert (whole.output_bytes, whole.dropped_bytes) == (300_000, 0)
    assert 0 < cut.dropped_bytes == 300_000 - cut.output_bytes


async def test_byte_by_byte_output_over_the_cap_stays_within_memory(open_runner: OpenRunner) -> None:
    limits = SpoolLimits(head_cap=1000, tail_cap=10_000)
    program = "import os\nfor i in range(20_000): os.write(1 + i % 2, b'x')"
    async with open_runner(limits=limits) as runner:
        run_id = await runner.python(program)
        report = await runner.finished(run_id)
        kept = sum(len(chunk.data) for chunk in await runner.chunks(run_id))
        assert kept == report.output_bytes
        assert kept + report.dropped_bytes == 20_000


@pytest.mark.parametrize("room", [200_000, 230_000, 300_000])
async def test_bytes_lost_while_the_tail_is_written_are_counted(open_runner: OpenRunner, room: int) -> None:
    async with open_runner(limits=SpoolLimits(head_cap=200_000, tail_cap=400_000)) as runner:
        resource.prlimit(await _zygote_pid(), resource.RLIMIT_FSIZE, (room, room))
        report = await runner.run("head", "-c", "3000000", "/dev/zero")
        kept = sum(len(chunk.data) for chunk in await runner.chunks(report.run_id))
        assert kept == report.output_bytes
        assert kept + report.dropped_bytes == 3_000_000


async def test_full_disk_neither_stops_the_command_nor_hides_its_end(open_runner: OpenRunner) -> None:
    async with open_runner(limits=SpoolLimits(tail_cap=50_000)) as runner:
        # The supervisor inherits the limit from the zygote: its writes fail as on a full disk, after 300,000 bytes.
        resource.prlimit(await _zygote_pid(), resource.RLIMIT_FSIZE, (300_000, 300_000))
        run_id = await runner.start("sh", "-c", "yes 0123456789 | head -c 2000000; exit 7")
        report = await runner.finished(run_id)
        assert (report.cause, report.exit_code) == (ExitCause.EXITED, 7)
        chunks = await runner.chunks(run_id)
        expected = b"0123456789\n" * 181_819
        _compare(chunks, expected[:2_000_000])
        kept = sum(len(chunk.data) for chunk in chunks)
        assert 200_000 < kept < 300_000
        assert kept + report.dropped_bytes == 2_000_000
        assert report.output_bytes == kept


async def test_background_child_that_holds_stdout_does_not_keep_the_run_open(open_runner: OpenRunner) -> None:
    async with open_runner(hard_limit=20) as runner:
        run_id = await runner.start("sh", "-c", "sleep 1000 & echo $!; exit 4")
        report = await runner.finished(run_id)
        assert (report.cause, report.exit_code) == (ExitCause.EXITED, 4)
        child = int(await runner.output(run_id))
        os.kill(child, 0)  # it lives on
        os.kill(child, 9)


async def test_background_child_that_never_stops_writing_does_not_keep_the_run_open(open_runner: OpenRunner) -> None:
    async with open_runner(hard_limit=20) as runner:
        run_id = await runner.start("sh", "-c", "yes >&2 & echo $!; exit 5")
        report = await runner.finished(run_id)
        assert (report.cause, report.exit_code) == (ExitCause.EXITED, 5)
        child = int(await runner.output(run_id))
        # Its pipe is gone, and so, being `yes`, is it; killed in case it had not noticed yet.
        if Path(f"/proc/{child}").exists():
            os.kill(child, 9)


async def test_output_written_just_after_the_leader_has_gone_is_still_taken(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        run_id = await runner.start("bash", "-c", "exec > >(cat; echo end); echo begin")
        await runner.finished(run_id)
        assert await runner.output(run_id) == b"begin\nend\n"


async def test_command_that_nobody_reads_is_not_slowed_down(open_runner: OpenRunner) -> None:
    async with open_runner(poll_interval=1000) as runner:
        run_id = await runner.start("sh", "-c", "head -c 50000000 /dev/zero; head -c 1000 /dev/zero >&2")
        report = await runner.finished(run_id)
        assert report.output_bytes == 50_001_000


def _compare(chunks: Sequence[OutputChunk], written: bytes) -> None:
    """Each chunk has what was written there; what was left out before it is where it was left out."""
    kept = dropped = 0
    for chunk in chunks:
        assert chunk.position == kept
        dropped += chunk.dropped_before
        assert written[kept + dropped :].startswith(chunk.data)
        kept += len(chunk.data)


async def _zygote_pid() -> int:
    # It is started beside the executor, which may be there first.
    while True:
        for stat in descendants({os.getpid()}):
            if b"supervisor/zygote.py" in Path(f"/proc/{stat.pid}/cmdline").read_bytes():
                return stat.pid
        await trio.sleep(0.01)
