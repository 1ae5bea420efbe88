"""Output is byte-identical at the reader, whatever the bytes are and whatever dies on the way."""

from __future__ import annotations

import hashlib
import random
import sys
from pathlib import Path

import pytest

from lab.big_output import BIG_OUTPUT_SETTINGS, big_output_commands, measure_big_output
from lab.limits import within
from shovey_trio.demo.operator import open_operator
from shovey_trio.v1 import job_pb2 as pb

from .conftest import OpenBench

pytestmark = pytest.mark.slow

_RANDOM = random.Random(4)
BODIES = {
    "random": (_RANDOM.randbytes(1_500_000), _RANDOM.randbytes(200_001)),
    "nul": (bytes(70_000), b"\0"),
    "utf8": ("…€𝄞".encode() * 30_000, "é".encode()),
    "line": (b"x" * 10_000_000 + b"\n", b""),
}
# Writes a file to each stream in pieces of odd lengths, so that characters are split everywhere.
WRITE = """
import os, sys
for descriptor, name in ((1, sys.argv[1]), (2, sys.argv[2])):
    data, at = open(name, "rb").read(), 0
    while at < len(data):
        at += os.write(descriptor, data[at:at + 65521])
"""


@within(90)
async def test_every_kind_of_bytes_is_identical_at_the_reader_through_a_kill_of_the_daemon(
    bench_of: OpenBench, tmp_path: Path
) -> None:
    commands = {}
    for name, bodies in BODIES.items():
        files = []
        for number, body in enumerate(bodies):
            files.append(tmp_path / f"{name}-{number}")
            files[-1].write_bytes(body)
        commands[name] = {"argv": [sys.executable, "-I", "-S", "-c", WRITE, *map(str, files)]}
    async with bench_of(nodes=("web-1",), commands=commands) as bench:
        async with open_operator(bench.fleet) as operator:
            jobs = {name: await operator.start(name, "web-1") for name in BODIES}
        await bench.kill_daemon()
        await bench.start_daemon()
        async with bench.open_client() as client:
            for name, job_id in jobs.items():
                got = {pb.OUTPUT_STREAM_STDOUT: bytearray(), pb.OUTPUT_STREAM_STDERR: bytearray()}
                async with client.read_output(job_id, "web-1", follow=True) as reader:
                    async for message in reader:
                        got[message.chunk.stream] += message.chunk.data
                assert (await client.get_run(job_id, "web-1")).exit_code == 0
                hashes = [hashlib.sha256(part).hexdigest() for part in got.values()]
                assert hashes == [hashlib.sha256(body).hexdigest() for body in BODIES[name]], name


@within(60)
async def test_a_background_child_that_holds_stdout_does_not_hold_the_run(bench_of: OpenBench) -> None:
    commands = {"leaves": {"argv": ["/bin/sh", "-c", "sleep 600 & echo left $!"]}}
    async with bench_of(nodes=("web-1",), commands=commands) as bench, open_operator(bench.fleet) as operator:
        finished = await operator.run("leaves", "web-1")
        assert finished.states() == {"web-1": "succeeded"}
        said = await operator.output(finished.job.id, "web-1")
        pid = int(said.removeprefix(b"left "))
        assert Path(f"/proc/{pid}").exists()


@within(110)
async def test_much_output_and_a_slow_reader_cost_neither_bytes_nor_memory(bench_of: OpenBench) -> None:
    # 1 GiB of it is for tools/chaos.sh --output-mib 1024; what grows with the output would show here too.
    async with bench_of(nodes=("web-1",), agent_settings=BIG_OUTPUT_SETTINGS, commands=big_output_commands()) as bench:
        measured = await measure_big_output(bench, mebibytes=16)
    assert measured.got == measured.written
    # The share of pages that others map too depends on what else runs on the machine, so the whole figure is for
    # tools/chaos.sh; what moving output costs is the same everywhere.
    assert measured.agent_growth <= 16 * 2**20
    assert measured.daemon_peak <= 256 * 2**20


@pytest.mark.parametrize("number", ["TERM", "KILL"])
@within(60)
async def test_a_job_that_restarts_its_own_agent_succeeds(bench_of: OpenBench, tmp_path: Path, number: str) -> None:
    # What the package's unit does (KillMode=process, Restart=always) the bench does: it starts again what has ended.
    pid_file = tmp_path / "agent.pid"
    script = (
        f"kill -{number} $(cat {pid_file}); while kill -0 $(cat {pid_file}) 2>/dev/null; do sleep 0.05; done; echo up"
    )
    commands = {"upgrade": {"argv": ["/bin/sh", "-c", script]}}
    async with bench_of(nodes=("web-1",), commands=commands) as bench:
        before = bench.fleet.nodes["web-1"].agent.pid
        pid_file.write_text(str(before))
        async with bench.kept_running(), open_operator(bench.fleet) as operator:
            finished = await operator.run("upgrade", "web-1")
            assert finished.states() == {"web-1": "succeeded"}
            assert await operator.output(finished.job.id, "web-1") == b"up\n"
        await bench.start_agent("web-1")
        assert bench.fleet.nodes["web-1"].agent.pid != before
