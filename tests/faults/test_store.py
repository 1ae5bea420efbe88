"""A store that fails under a running daemon: explicit errors, NOT_SERVING, and back again without a restart."""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from lab.faults import FaultBench, open_bench
from lab.limits import within
from shovey_trio.rpc.bridge import RpcError
from shovey_trio.rpc.client.retry import RetryPolicy
from shovey_trio.v1 import job_service_pb2 as jobs_pb

from .conftest import OpenBench

pytestmark = pytest.mark.slow

NODES = ("web-1",)
_ONCE = RetryPolicy(attempt_deadline=10.0, call_patience=0.0)


async def wait_serving(bench: FaultBench, serving: bool) -> None:
    while await bench.is_serving() != serving:  # noqa: ASYNC110 - asked over the network
        await trio.sleep(0.05)


async def refusal(bench: FaultBench) -> str:
    """The reason with which a job is refused now."""
    from shovey_trio.rpc.client.client import open_client

    server, tls, server_name = bench.fleet.client_tls()
    async with open_client(server, tls, server_name=server_name, retry=_ONCE) as client:
        request = jobs_pb.StartJobRequest(
            command="quick", target=jobs_pb.Target(nodes=jobs_pb.NodeNames(names=NODES)), quorum="0"
        )
        with pytest.raises(RpcError) as caught:
            await client.start_job(request)
    return caught.value.reason


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@within(60)
async def test_a_store_that_cannot_write_is_said_so_and_service_returns_without_restart(
    bench_of: OpenBench, error: str
) -> None:
    async with bench_of(nodes=NODES) as bench, bench.open_client() as client:
        daemon = bench.fleet.controller.pid
        await bench.start_job(client, "chatter")
        await bench.wait_started(1)
        bench.set_failpoints(f"store.commit.before error {error}")
        assert await refusal(bench) == "STORE_UNAVAILABLE"
        await wait_serving(bench, serving=False)
        bench.set_failpoints()
        # Nobody has to write for it to be found out: the run that goes on does.
        await wait_serving(bench, serving=True)
        assert await bench.settle() == []
        assert bench.fleet.controller.pid == daemon


@within(60)
async def test_a_store_that_another_process_locks_is_waited_for(bench_of: OpenBench) -> None:
    async with bench_of(nodes=NODES) as bench, bench.open_client() as client:
        daemon = bench.fleet.controller.pid
        await bench.start_job(client, "chatter")
        await bench.wait_started(1)
        with contextlib.closing(sqlite3.connect(bench.fleet.data.store, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert await refusal(bench) == "STORE_UNAVAILABLE"
            await wait_serving(bench, serving=False)
            other.execute("ROLLBACK")
        await wait_serving(bench, serving=True)
        assert await bench.settle() == []
        assert bench.fleet.controller.pid == daemon


@pytest.fixture
def bench_directory() -> Iterator[Path]:
    """A directory for a bench whose daemon has a disk of 8 MiB for itself; needs root."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    with tempfile.TemporaryDirectory(prefix="shovey-disk-") as directory:
        disk = Path(directory) / "controller"
        disk.mkdir(mode=0o700)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", str(disk)], check=True)
        try:
            yield Path(directory)
        finally:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)


@within(60)
async def test_a_full_disk_is_said_so_and_service_returns_when_there_is_room(bench_directory: Path) -> None:
    async with open_bench(bench_directory, nodes=NODES) as bench, bench.open_client() as client:
        daemon = bench.fleet.controller.pid
        await bench.start_job(client, "chatter")
        await bench.wait_started(1)
        filler = bench_directory / "controller" / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            file.writelines(itertools.repeat(bytes(65536)))
        # The log may have had some pages to spare; the run that goes on uses them up.
        await wait_serving(bench, serving=False)
        assert await refusal(bench) == "STORE_UNAVAILABLE"
        filler.unlink()
        await wait_serving(bench, serving=True)
        assert await bench.settle() == []
        assert bench.fleet.controller.pid == daemon


@within(60)
async def test_a_corrupt_file_is_refused_and_named_and_never_served(bench_of: OpenBench) -> None:
    async with bench_of(nodes=NODES) as bench, bench.open_client() as client:
        await bench.start_job(client, "quick")
        assert await bench.settle() == []
        await bench.fleet.controller.stop()
        store = bench.fleet.data.store
        whole = store.read_bytes()
        with store.open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(len(whole) - 4096))
        await bench.start_daemon()
        assert await bench.fleet.controller.wait() != 0
        said = bench.fleet.controller.tail(3)
        assert "STORE_CORRUPT" in said or "damaged" in said
        assert store.name in said
        store.write_bytes(whole)
