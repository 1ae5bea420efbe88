"""The audit log of both stores: in the commit of what it records, in order, and pruned without losing its proof."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from shovey_trio.core.audit.chain import ChainVerifier
from shovey_trio.core.audit.records import GENESIS, AuditAction, AuditEntry, AuditOutcome, AuditRecord
from shovey_trio.core.jobs.model import Grant, Role, User
from shovey_trio.store.contract import Store
from shovey_trio.store.opening import open_store
from shovey_trio.store.sql.audit import PRUNE_ROWS

from .conftest import NOW, Make

USER = User(name="ada", organization="default", role=Role.OPERATOR, created_at=NOW)


def entry(at: float = NOW, **fields: Any) -> AuditEntry:
    values: dict[str, Any] = {
        "organization": "default",
        "action": AuditAction.USER_CERTIFIED,
        "outcome": AuditOutcome.ALLOWED,
    }
    return AuditEntry(at=at, **{**values, **fields})


async def everything(store: Store) -> Sequence[AuditRecord]:
    return await store.read_audit(after_seq=0, limit=100_000)


async def verified(store: Store) -> int:
    """How many records there are, all of them in their chain."""
    verifier = ChainVerifier(await store.audit_start())
    records = await everything(store)
    for record in records:
        verifier.feed(record)
    assert verifier.finish() == await store.audit_head()
    return len(records)


async def test_record_is_committed_with_what_it_records(store: Store, make: Make) -> None:
    assert await store.audit_head() == GENESIS
    job, runs = make.job()
    await store.create_job(job, runs, None, audit=entry(subject="start"))
    await store.write_job(job, audit=entry(subject="end"))
    await store.write_user(USER, audit=entry(subject="user"))
    await store.write_certificate(
        serial="1", organization="default", subject="user/ada", expires_at=NOW, audit=entry(subject="certificate")
    )
    await store.revoke_certificates("default", "user/ada", audit=entry(subject="revoked"))
    await store.write_grant(
        Grant(organization="default", user="ada", command="*", nodes="*"), audit=entry(subject="grant")
    )
    await store.write_chef_principals([], audit=entry(subject="keys"))
    assert [record.seq for record in await everything(store)] == [1, 2, 3, 4, 5, 6, 7]
    assert await verified(store) == 7


async def test_what_changed_nothing_is_not_recorded(store: Store, make: Make) -> None:
    job, runs = make.job()
    await store.create_job(job, runs, make.request(), audit=entry())
    again, runs_again = make.job()
    assert not (await store.create_job(again, runs_again, make.request(), audit=entry())).created
    assert not await store.remove_user("default", "nobody", audit=entry())
    assert not await store.use_enrollment_token(digest=b"x", organization="o", node="n", now=NOW, audit=entry())
    assert await verified(store) == 1


async def test_records_are_found_by_number_organization_and_time(store: Store) -> None:
    head = await store.append_audit([entry(NOW + n, organization="a" if n % 2 else "b") for n in range(6)])
    assert head.seq == 6
    assert [r.seq for r in await store.read_audit(after_seq=2, limit=2)] == [3, 4]
    assert [r.seq for r in await store.read_audit(after_seq=0, limit=9, organization="a")] == [2, 4, 6]
    assert [r.seq for r in await store.read_audit(after_seq=0, limit=9, since=NOW + 2, until=NOW + 4)] == [3, 4]


async def test_pruned_log_still_verifies_and_says_that_it_was_pruned(store: Store) -> None:
    await store.append_audit([entry(NOW + n) for n in range(PRUNE_ROWS + 10)])
    await store.prune_audit(before=NOW + PRUNE_ROWS + 5, now=NOW + 9_999, organization="default")
    kept = await everything(store)
    assert kept[0].seq == PRUNE_ROWS + 6
    assert (await store.audit_start()).seq == PRUNE_ROWS + 5
    assert [AuditAction.AUDIT_PRUNED in record.body for record in kept] == [False] * 5 + [True] * 2
    await verified(store)


async def test_last_record_is_never_pruned(store: Store) -> None:
    await store.append_audit([entry()])
    await store.prune_audit(before=NOW + 1, now=NOW + 1, organization="default")
    assert await verified(store) == 1


async def test_rolled_back_write_leaves_no_record(tmp_path: Path, make: Make) -> None:
    async with open_store(tmp_path / "store.db") as store:
        job, runs = make.job()
        await store.create_job(job, runs, None, audit=entry())
        with pytest.raises(Exception, match=r"UNIQUE|stored already"):
            await store.create_job(job, runs, None, audit=entry())
        assert await verified(store) == 1


async def test_second_process_continues_the_same_chain(tmp_path: Path) -> None:
    async with open_store(tmp_path / "store.db") as served:
        await served.append_audit([entry()])
        async with open_store(tmp_path / "store.db", exclusive=False) as beside:
            await beside.append_audit([entry()])
        await served.append_audit([entry()])
        assert await verified(served) == 3


@pytest.mark.parametrize("statement", ["UPDATE audit SET body = '{}'", "DELETE FROM audit WHERE seq = 2"])
async def test_database_refuses_to_change_records(tmp_path: Path, statement: str) -> None:
    async with open_store(tmp_path / "store.db") as store:
        await store.append_audit([entry(), entry()])
    with (
        closing(sqlite3.connect(tmp_path / "store.db")) as connection,
        pytest.raises(sqlite3.IntegrityError, match="append-only"),
    ):
        connection.execute(statement)
