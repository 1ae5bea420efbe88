"""The migrations end where the tables are, and an up-to-date file does without them."""

from __future__ import annotations

import re
import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from shovey_trio.core.errors import StoreCorrupt
from shovey_trio.core.jobs.model import Presence, ToldEnd
from shovey_trio.core.jobs.states import RunState
from shovey_trio.store.opening import open_store
from shovey_trio.store.sql import schema
from shovey_trio.store.sql.tables import metadata
from shovey_trio.store.sqlite import schema as sqlite_schema
from shovey_trio.store.sqlite.schema import APPLICATION_ID, AUDIT_TRIGGERS
from tests.store.conftest import Make

_OWN = "alembic_version"


def shape(path: Path) -> dict[str, str]:
    """Every table and index of a file, with the statement that makes it."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        # A column that was added later stands there with other spaces.
        return {name: re.sub(r"\s*([(),])\s*", r"\1", " ".join(sql.split())) for name, sql in rows if name != _OWN}


async def test_migrations_make_exactly_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    async with open_store(tmp_path / "migrated.db"):
        pass
    engine = create_engine(f"sqlite:///{tmp_path / 'created.db'}")
    metadata.create_all(engine)
    with engine.begin() as connection:
        for trigger in AUDIT_TRIGGERS:
            connection.exec_driver_sql(trigger)
    engine.dispose()
    assert shape(tmp_path / "migrated.db") == shape(tmp_path / "created.db")

    engine = create_engine(f"sqlite:///{tmp_path / 'migrated.db'}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_newest_revision_is_the_one_the_code_knows() -> None:
    scripts = ScriptDirectory(str(Path(schema.__file__).parent / "migrations"))
    assert scripts.get_heads() == [schema.HEAD]
    assert [script.revision for script in scripts.walk_revisions()][::-1] == list(schema.REVISIONS)


async def test_up_to_date_file_is_opened_without_alembic(tmp_path: Path) -> None:
    async with open_store(tmp_path / "store.db"):
        pass
    script = (
        "import sys, trio\n"
        "from pathlib import Path\n"
        "from shovey_trio.store.opening import open_store\n"
        "async def main():\n"
        "    async with open_store(Path(sys.argv[1])) as store:\n"
        "        await store.next_epoch(0.0)\n"
        "trio.run(main)\n"
        "sys.exit('alembic' in sys.modules)\n"
    )
    done = await trio.run_process([sys.executable, "-c", script, str(tmp_path / "store.db")], check=False)
    assert done.returncode == 0


async def test_file_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with open_store(path):
        pass
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    before = shape(path)
    with pytest.raises(StoreCorrupt, match=r"store\.db has schema 9999"):
        async with open_store(path):
            pass
    assert shape(path) == before


async def test_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.db"
    monkeypatch.setattr(sqlite_schema, "APPLICATION_ID", "not a number; the last statement fails")
    with pytest.raises(Exception, match="syntax error"):
        async with open_store(path):
            pass
    assert shape(path) == {}
    monkeypatch.undo()
    async with open_store(path) as store:
        assert await store.next_epoch(7.0) == 7


async def test_an_end_that_was_held_as_a_late_report_is_held_still(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "store.db"
    told = ToldEnd(state=RunState.FAILED, cause="exited", exit_code=3, signal=None, reported_at=7.0)
    job, (running, ended) = make.job(["running", "ended"])
    async with open_store(path) as store:
        await store.create_job(job, [running, ended], None)
        await store.write_run(replace(running, state=RunState.RUNNING, late_report=told))
        await store.write_run(replace(ended, state=RunState.CRASHED, late_report=told))
    with closing(sqlite3.connect(path)) as connection, connection:
        since = (("runs", "held_end"), ("runs", "released_at"), ("jobs", "epoch"), ("output", "dropped_before"))
        since += tuple((table, "checksum") for table in ("runs", "events", "output"))
        since += (("runs", "output_incomplete"),)
        since += (("enrollment_tokens", "used_by"),)
        for table, column in since:
            connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        connection.execute("UPDATE alembic_version SET version_num = '0004'")
    async with open_store(path) as store:
        (picture,) = await store.unfinished_jobs()
        found = {run.node: (run.held_end, run.late_report) for run in picture.runs}
        assert found == {"running": (told, None), "ended": (None, told)}
        # Until then a job released all of its runs when it was made.
        assert {run.released_at for run in picture.runs} == {job.created_at}


OLDEST_ROWS: dict[str, dict[str, object]] = {
    "jobs": {
        "job_pk": 1,
        "job_id": "0199-job",
        "organization": "default",
        "command": "uptime",
        "quorum": "100%",
        "run_timeout": 60.0,
        "kill_grace": 10.0,
        "created_by": "user/admin",
        "created_at": 1.5,
        "updated_at": 2.5,
        "state": "running",
        "cause": "",
        "detail": "",
        "cancel_requested": 0,
        "run_total": 1,
        "run_counts": '{"running":1}',
    },
    "runs": {
        "run_pk": 1,
        "run_id": "0199-run",
        "job_pk": 1,
        "node": "web-1",
        "created_at": 1.5,
        "nonce": b"0123456789abcdef",
        "agent_instance": "i-1",
        "state": "running",
        "cause": "",
        "detail": "",
        "updated_at": 2.5,
        "accepted_at": 2.0,
        "started_at": 2.5,
        "cancelling": 0,
        "cancel_reason": "",
        "route": "stream",
        "attempts": 1,
        "order_expires_at": 61.5,
        "dropped_bytes": 0,
    },
    "events": {"seq": 1, "job_pk": 1, "run_pk": 1, "body": '{"updated_at":2.5,"state":"running","attempts":1}'},
    "output": {
        "seq": 2,
        "job_pk": 1,
        "run_pk": 1,
        "position": 0,
        "stream": "stdout",
        "stream_offset": 0,
        "read_at": 2.5,
        "data": b"up 3 days\n",
    },
    "nodes": {
        "organization": "default",
        "name": "web-1",
        "agent_instance": "i-1",
        "agent_version": "0.1.0",
        "link": "attached",
        "tags": '{"role":"web"}',
        "enrolled_at": 1.0,
        "presence": "up",
        "presence_since": 1.0,
        "presence_reason": "attached",
    },
    "users": {"organization": "default", "name": "admin", "role": "admin", "created_at": 1.0},
    "certificates": {
        "serial": "7",
        "organization": "default",
        "subject": "user/admin",
        "expires_at": 9.0,
        "revoked": 1,
    },
}


async def test_store_of_the_first_version_is_taken_over_with_all_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.touch(0o600)
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        schema.migrate(connection, "0001")
        connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
        for table, row in OLDEST_ROWS.items():
            marks = ", ".join("?" for _ in row)
            connection.exec_driver_sql(
                f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})",  # names from above
                tuple(row.values()),
            )
    engine.dispose()
    async with open_store(path) as store:
        (taken_up,) = await store.unfinished_jobs()
        (run,) = taken_up.runs
        assert (taken_up.job.command, taken_up.job.run_counts) == ("uptime", {RunState.RUNNING: 1})
        assert (run.node, run.state, run.route, run.nonce) == (
            "web-1",
            RunState.RUNNING,
            "stream",
            b"0123456789abcdef",
        )
        assert (run.organization, run.job_id, run.key_id) == ("default", "0199-job", "")
        assert (run.released_at, taken_up.job.epoch, run.output_incomplete) == (1.5, 0, False)
        events = await store.read_events("0199-job", after_seq=0, limit=10, include_output=True)
        assert [event.seq for event in events] == [1, 2]
        (chunk,) = await store.read_output("0199-run", stream=None, offset=0, limit=100)
        assert (chunk.data, chunk.dropped_before) == (b"up 3 days\n", 0)
        (node,) = await store.load_nodes()
        assert (node.name, node.tags, node.presence) == ("web-1", {"role": "web"}, Presence.UP)
        assert [user.name for user in await store.load_users()] == ["admin"]
        assert list(await store.revoked_serials()) == ["7"]
        await store.write_run(replace(run, state=RunState.SUCCEEDED, finished_at=3.0))
        assert (await store.count_runs("default", "0199-job")) == {RunState.SUCCEEDED: 1}
