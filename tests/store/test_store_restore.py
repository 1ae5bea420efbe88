"""What an older copy of a store is put right with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from shovey_trio.core.audit.records import AuditEntry, AuditOutcome
from shovey_trio.core.chef.principals import ChefPrincipal, ChefPrincipalKind
from shovey_trio.core.jobs.events import STORE_RESTORED
from shovey_trio.core.jobs.model import Grant, Role, User
from shovey_trio.core.jobs.states import JobState, RunState
from shovey_trio.core.trust.rights import RevokedCertificate, Rights
from shovey_trio.store.contract import Store

from .conftest import NOW, Make

ENTRY = AuditEntry(at=NOW, organization="default", action="store.restored", outcome=AuditOutcome.ALLOWED)
TOKEN: dict[str, Any] = {"digest": b"x" * 32, "organization": "default", "node": "web-1"}
ADA = User(name="ada", organization="default", role=Role.ADMIN, created_at=NOW)
BOB = User(name="bob", organization="default", role=Role.OPERATOR, created_at=NOW)
GRANT = Grant(organization="default", user="bob", command="uptime", nodes="web-*")
KNIFE = ChefPrincipal(
    organization="default",
    kind=ChefPrincipalKind.USER,
    name="bob",
    role=Role.OPERATOR,
    public_key="PEM",
    created_at=NOW,
)


async def test_rights_are_all_that_decides_who_may_do_what(store: Store) -> None:
    await store.write_user(ADA)
    await store.write_grant(GRANT)
    await store.write_chef_principals([KNIFE])
    for serial in ("01", "02"):
        await store.write_certificate(serial=serial, organization="default", subject="user/bob", expires_at=NOW)
    await store.revoke_certificates("default", "user/bob")
    await store.write_certificate(serial="03", organization="default", subject="user/bob", expires_at=NOW)
    assert await store.read_rights() == Rights(
        revoked=tuple(
            RevokedCertificate(serial=serial, organization="default", subject="user/bob", expires_at=NOW)
            for serial in ("01", "02")
        ),
        users=(ADA,),
        grants=(GRANT,),
        chef_principals=(KNIFE,),
    )


async def test_every_token_of_a_restored_store_is_void(store: Store) -> None:
    await store.write_enrollment_token(**TOKEN, expires_at=NOW + 60)
    await store.accept_restore(rights=None, now=NOW, audit=ENTRY)
    assert not await store.use_enrollment_token(**TOKEN, now=NOW)


async def test_what_was_taken_since_the_copy_stays_taken(store: Store) -> None:
    await store.write_user(BOB)
    await store.write_user(replace(ADA, role=Role.OPERATOR))
    await store.write_chef_principals([KNIFE])
    await store.write_certificate(serial="01", organization="default", subject="user/bob", expires_at=NOW)
    kept = Rights(
        revoked=tuple(
            RevokedCertificate(serial=serial, organization="default", subject="user/bob", expires_at=NOW)
            for serial in ("01", "99")
        ),
        users=(ADA,),
        grants=(GRANT,),
    )
    await store.accept_restore(rights=kept, now=NOW, audit=ENTRY)
    assert await store.revoked_serials() == ("01", "99")
    assert await store.read_rights() == kept


async def test_rights_that_were_not_kept_are_those_of_the_copy(store: Store) -> None:
    await store.write_user(BOB)
    await store.accept_restore(rights=None, now=NOW, audit=ENTRY)
    assert await store.load_users() == (BOB,)


async def test_every_run_without_an_end_is_unknown_by_the_restore_and_again_changes_nothing_else(
    store: Store, make: Make
) -> None:
    job, [open_run, ended] = make.job(["a", "b"])
    await store.create_job(job, [open_run, replace(ended, state=RunState.SUCCEEDED, finished_at=NOW)], None)
    over, [left] = make.job(["c"], state=JobState.COMPLETE, finished_at=NOW)
    await store.create_job(over, [left], None)
    for at in (NOW + 1, NOW + 2):
        [unsure] = await store.accept_restore(rights=None, now=at, audit=ENTRY)
        assert (unsure.node, unsure.state, unsure.cause) == ("a", RunState.UNKNOWN, STORE_RESTORED)
        assert unsure.unknown_since == at
    runs, _ = await store.list_runs("default", job.id, states=frozenset(), limit=10, after="")
    assert [run.state for run in runs] == [RunState.UNKNOWN, RunState.SUCCEEDED]
    assert [record.seq for record in await store.read_audit(after_seq=0, limit=10)] == [1, 2]
