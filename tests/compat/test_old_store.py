"""A store that 4a4340d has written, served by today's code: it reads the same, and what had not ended ends truthfully.

``make_store_4a4340d.py`` says how the fixture was made. It has neither keys nor certificates: those would expire.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import sqlite3
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, Final

import pytest

from lab.limits import within
from shovey_trio.application.audit_verify import verify_audit
from shovey_trio.core.audit.records import parse_head
from shovey_trio.core.jobs.model import StreamName
from shovey_trio.core.jobs.states import TERMINAL_RUN_STATES
from shovey_trio.demo.fleet import ORGANIZATION, Fleet, NodeSpec, run_program
from shovey_trio.demo.operator import Operator, open_operator, state_of
from shovey_trio.store.contract import JobFilter, Store
from shovey_trio.store.opening import open_store

from .as_json import plain

FIXTURE: Final = Path(__file__).parent / "fixtures" / "4a4340d"
EXPECTED: Final = json.loads((FIXTURE / "expected.json").read_text("utf-8"))
MADE_AT: Final = 1_790_000_000.0
UNFINISHED: Final = (
    "pending",
    "dispatched",
    "accepted",
    "running",
    "unknown",
    "cancelling",
    "schob-sent",
    "schob-held",
)
# The fixture grows old, and retention must not delete it.
KEEP: Final = {"retention.jobs": "36500d", "retention.statuses": "36500d", "retention.audit": "36500d"}


def unpack(path: Path) -> Path:
    path.write_bytes(lzma.decompress((FIXTURE / "store.sqlite3.xz").read_bytes()))
    path.chmod(0o600)
    return path


@asynccontextmanager
async def migrated(directory: Path) -> AsyncIterator[Store]:
    directory.chmod(0o700)
    async with open_store(unpack(directory / "store.sqlite3")) as store:
        yield store


def assert_holds(found: Any, expected: Any, at: str = "") -> None:
    """Everything that the old version read is read today; there may be more."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert_holds(found[key], value, f"{at}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), at
        for number, value in enumerate(expected):
            assert_holds(found[number], value, f"{at}/{number}")
    else:
        assert found == expected, at


@within(30)
async def test_jobs_runs_and_events_of_the_old_version_read_the_same(tmp_path: Path) -> None:
    async with migrated(tmp_path) as store:
        listed, _ = await store.list_jobs(JobFilter(organization=ORGANIZATION), limit=100, after="")
        assert {job.id for job in listed} == set(EXPECTED["jobs"])
        for job in listed:
            expected = EXPECTED["jobs"][job.id]
            snapshot = await store.snapshot_job(ORGANIZATION, job.id)
            assert snapshot is not None
            assert_holds(plain(job), expected["job"], job.command)
            for run in snapshot.runs:
                was = dict(expected["runs"][run.node])
                if was["state"] not in TERMINAL_RUN_STATES:
                    # One column had two meanings: an end that waits for its output has its own since.
                    was["held_end"], was["late_report"] = was["late_report"], None
                assert_holds(plain(run), was, run.node)
            events = await store.read_events(job.id, after_seq=0, limit=1000, include_output=True)
            assert [event.seq for event in events] == expected["events"]
        assert sorted(job.job.id for job in await store.unfinished_jobs()) == EXPECTED["unfinished"]


@within(30)
async def test_output_of_the_old_version_is_there_byte_for_byte(tmp_path: Path) -> None:
    async with migrated(tmp_path) as store:
        for expected in EXPECTED["jobs"].values():
            for run in expected["runs"].values():
                for stream in StreamName:
                    chunks = await store.read_output(run["id"], stream=stream, offset=0, limit=1 << 20)
                    found = hashlib.sha256(b"".join(chunk.data for chunk in chunks)).hexdigest()
                    assert found == expected["output"][f"{run['node']} {stream}"], run["node"]


@within(30)
async def test_people_nodes_grants_and_revocations_of_the_old_version_hold(tmp_path: Path) -> None:
    async with migrated(tmp_path) as store:
        assert_holds(plain(await store.load_users()), EXPECTED["users"])
        assert_holds(plain(await store.load_nodes()), EXPECTED["nodes"])
        assert_holds(plain(await store.load_chef_principals()), EXPECTED["chef"])
        assert_holds(plain(await store.load_grants(ORGANIZATION, "olga")), EXPECTED["grants"])
        assert list(await store.revoked_serials()) == EXPECTED["revoked"]
        used, fresh = [
            await store.use_enrollment_token(digest=digest * 32, organization=ORGANIZATION, node=node, now=MADE_AT)
            for digest, node in ((b"\2", "used-node"), (b"\1", "new-node"))
        ]
        assert (used, fresh) == (False, True)


@within(30)
async def test_audit_log_of_the_old_version_verifies_with_the_runs_of_its_jobs(tmp_path: Path) -> None:
    async with migrated(tmp_path) as store:
        verified = await verify_audit(store, expected=[parse_head(EXPECTED["head"])], runs=True)
    assert str(verified.head) == EXPECTED["head"]
    assert verified.jobs == 2


@asynccontextmanager
async def served(directory: Path, *, age: float, settings: Mapping[str, str]) -> AsyncIterator[tuple[Fleet, Operator]]:
    """A real controller with fresh keys on a copy of the store, whose times are moved so that it is ``age`` old."""
    fleet = Fleet(directory, settings={**KEEP, **settings}, serf=None)
    await fleet.initialize()
    move_times(unpack(fleet.data.root / "store.sqlite3"), time.time() - age - MADE_AT)
    try:
        await fleet.controller.start()
        await fleet.wait_ready()
        async with open_operator(fleet) as operator:
            yield fleet, operator
        assert await fleet.controller.stop() == 0
        assert fleet.noise() == []
        assert "records hold" in await run_program(
            "shovey-trio", "audit", "verify", "--runs", "--unsigned", "--data-dir", str(fleet.data.root)
        )
    finally:
        await fleet.end()  # noqa: ASYNC102 - shielded, with a deadline, in there


def move_times(path: Path, by: float) -> None:
    """Moves the times of jobs and runs that have not ended; those that have are in the audit log's digests."""
    with closing(sqlite3.connect(path)) as file, file:
        for table in ("jobs", "runs"):
            columns = [row[1] for row in file.execute(f"PRAGMA table_info({table})")]
            times = [name for name in columns if name.endswith(("_at", "_since"))]
            changes = ", ".join(f"{name} = {name} + :by" for name in times)
            file.execute(f"UPDATE {table} SET {changes} WHERE finished_at IS NULL", {"by": by})


def unfinished(node: str) -> str:
    [job_id] = [found for found in EXPECTED["unfinished"] if node in EXPECTED["jobs"][found]["runs"]]
    return str(job_id)


@pytest.mark.slow
@within(90)
async def test_unfinished_jobs_that_no_node_speaks_of_end_with_what_can_be_known(tmp_path: Path) -> None:
    settings = {"jobs.reconnect_grace": "1s", "presence.stream_lost_after": "0.5s"}
    async with served(tmp_path, age=3600, settings=settings) as (_, operator):
        ends = {}
        for node in UNFINISHED:
            run = (await operator.finished(unfinished(node))).runs[node]
            ends[node] = (state_of(run), run.cause)
    assert ends == {
        **dict.fromkeys(UNFINISHED, ("crashed", "node_lost")),
        # It had told its end; only the end of its output was still to come.
        "schob-held": ("failed", "exited"),
    }


@pytest.mark.slow
@within(90)
async def test_unfinished_jobs_whose_nodes_attach_end_with_what_these_say(tmp_path: Path) -> None:
    """The nodes are new machines: none of them has the state directory that the old ones had."""
    async with served(tmp_path, age=5, settings={}) as (fleet, operator):
        for name in ("pending", "running", "cancelling"):
            node = await fleet.add_node(NodeSpec(name=name, whitelist={"true": "true"}), serf=None)
            await node.agent.start()
        ends = {}
        for name in fleet.nodes:
            run = (await operator.finished(unfinished(name))).runs[name]
            ends[name] = (state_of(run), run.cause)
    assert ends == {
        "pending": ("succeeded", "exited"),
        "running": ("crashed", "agent_replaced"),
        "cancelling": ("crashed", "agent_replaced"),
    }
