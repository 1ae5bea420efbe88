"""An older copy of the store is noticed by what was signed beside it, and put right when it is meant."""

from __future__ import annotations

import copy
import json

import pytest

from lab.kept_heads import KeptHeads
from lab.memory_store import MemoryStore
from shovey_trio.application.audit_anchor import open_anchor
from shovey_trio.application.restored import StoreOlder, accept_restore, check_store, sign_anew
from shovey_trio.core.audit.records import AuditAction, AuditBroken, AuditEntry, AuditOutcome
from shovey_trio.core.jobs.model import Role, User

NOW = 1_800_000_000.0
BOB = User(name="bob", organization="default", role=Role.OPERATOR, created_at=NOW)


class FixedClock:
    def now(self) -> float:
        return NOW


def entry(action: AuditAction = AuditAction.GRANT_GIVEN) -> AuditEntry:
    return AuditEntry(at=NOW, organization="default", action=action, outcome=AuditOutcome.ALLOWED)


async def sign(store: MemoryStore, kept: KeptHeads) -> None:
    anchor = await open_anchor(store=store, file=kept, clock=FixedClock())
    await anchor.sign_or_raise()


async def signed(records: int) -> tuple[MemoryStore, KeptHeads]:
    store, kept = MemoryStore(), KeptHeads()
    await store.append_audit([entry()] * records)
    await sign(store, kept)
    return store, kept


async def accept(store: MemoryStore, kept: KeptHeads) -> bool:
    done = await accept_restore(store, kept, clock=FixedClock(), organization="default", principal="controller")
    await sign_anew(store, kept, clock=FixedClock())
    return done.rights_kept


async def test_store_that_has_what_was_signed_is_served_whatever_came_after() -> None:
    store, kept = await signed(3)
    await check_store(store, kept)
    await store.append_audit([entry()])
    await check_store(store, kept)
    await store.prune_audit(before=NOW + 1, now=NOW + 5, organization="default")
    await check_store(store, kept)
    await check_store(MemoryStore(), KeptHeads())


async def test_store_that_lacks_what_was_signed_is_refused_and_so_is_one_that_went_on_from_there() -> None:
    store, kept = await signed(2)
    older = copy.deepcopy(store)
    await store.append_audit([entry()] * 2)
    await sign(store, kept)
    for _ in range(4):
        with pytest.raises(StoreOlder, match="--restored"):
            await check_store(older, kept)
        await older.append_audit([entry(AuditAction.USER_MADE)])


async def test_accepted_copy_is_on_record_with_what_was_signed_and_is_served_from_then_on() -> None:
    store, kept = await signed(2)
    older = copy.deepcopy(store)
    await store.append_audit([entry()] * 2)
    await sign(store, kept)
    lost = str(await store.audit_head())
    await accept(older, kept)
    await check_store(older, kept)
    said = json.loads((await older.read_audit(after_seq=2, limit=1))[0].body)
    assert (said["action"], said["detail"]["signed"]) == ("store.restored", lost)
    with pytest.raises(StoreOlder):
        await check_store(store, kept)


async def test_user_who_was_removed_since_the_copy_stays_removed() -> None:
    store, kept = MemoryStore(), KeptHeads()
    await store.write_user(BOB, audit=entry(AuditAction.USER_MADE))
    await sign(store, kept)
    older = copy.deepcopy(store)
    await store.remove_user("default", "bob", audit=entry(AuditAction.USER_REMOVED))
    await sign(store, kept)
    assert await accept(older, kept)
    assert await older.load_users() == ()


async def test_rights_of_a_store_that_is_newer_than_what_was_kept_are_its_own() -> None:
    store, kept = await signed(1)
    await store.write_user(BOB, audit=entry(AuditAction.USER_MADE))
    assert not await accept(store, kept)
    assert await store.load_users() == (BOB,)


async def test_rights_that_were_tampered_with_stop_the_restore_and_nothing_is_changed() -> None:
    store, kept = await signed(2)
    older = copy.deepcopy(store)
    await store.append_audit([entry()])
    await sign(store, kept)
    kept.damaged_rights = True
    before = await older.audit_head()
    with pytest.raises(AuditBroken):
        await accept(older, kept)
    assert await older.audit_head() == before


@pytest.mark.parametrize(
    ("action", "kept_anew"), [(AuditAction.JOB_ENDED, False), (AuditAction.CERTIFICATES_REVOKED, True)]
)
async def test_rights_are_kept_anew_when_a_record_says_that_they_may_have_changed(
    action: AuditAction, kept_anew: bool
) -> None:
    store, kept = await signed(1)
    anchor = await open_anchor(store=store, file=kept, clock=FixedClock())
    for _ in range(3):
        await anchor.sign()
    written = kept.rights_written
    await store.append_audit([entry(action)])
    await anchor.sign()
    assert (kept.rights_written > written) is kept_anew
