"""What anybody may cause is noted without waiting and without end to it, and the log's head is signed with care."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from lab.kept_heads import KeptHeads
from lab.limits import within
from lab.memory_store import MemoryStore
from shovey_trio.application.attempts import FailedAttempts
from shovey_trio.application.audit import AuditLog, CallOrigin, audit_entry, set_origin
from shovey_trio.application.audit_anchor import open_anchor
from shovey_trio.application.audit_verify import export_line, read_all, verify_audit, verify_export
from shovey_trio.core.addresses import peer_address
from shovey_trio.core.audit.records import AuditAction, AuditBroken, AuditRecord, chain_record
from shovey_trio.core.audit.tally import KINDS, WINDOW
from shovey_trio.core.errors import PermissionDenied, TooManyFailures, Unauthenticated
from shovey_trio.core.jobs.model import Principal, Role

NOW = 1_800_000_000.0
ADA = Principal(organization="default", role=Role.OPERATOR, name="ada")


class FixedClock:
    def now(self) -> float:
        return NOW


def opened(store: MemoryStore) -> AuditLog:
    return AuditLog(store=store, clock=FixedClock(), organization="default")


async def bodies(store: MemoryStore) -> list[dict[str, Any]]:
    return [json.loads(record.body) for record in await records_of(store)]


async def records_of(store: MemoryStore) -> Sequence[AuditRecord]:
    return [record async for record in read_all(store)]


async def served(log: AuditLog, seconds: float) -> None:
    with trio.move_on_after(seconds):
        await log.serve()


def called(peer: str = "192.0.2.7", principal: str = "user/ada") -> None:
    set_origin(CallOrigin(method="/m", peer=peer, rule="policy: role viewer", principal=principal))


def test_peer_is_its_address() -> None:
    given = ["ipv4:192.0.2.7:5000", "ipv6:[2001:db8::1]:5000", "ipv6:%5B::1%5D:9", "192.0.2.7:5", "[::1]:5", "unix:x"]
    assert [peer_address(peer) for peer in given] == ["192.0.2.7", "2001:db8::1", "::1", "192.0.2.7", "::1", "unix"]


def test_entry_says_where_the_call_came_from_and_which_rules_let_it_in() -> None:
    called()
    entry = audit_entry(NOW, AuditAction.JOB_STARTED, organization="default", principal="user/ada", rule="grant 'x'")
    assert (entry.method, entry.peer, entry.rule) == ("/m", "192.0.2.7", "policy: role viewer; grant 'x'")


async def test_refusal_is_recorded_at_once_and_repeats_are_counted(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    log = opened(store)
    called()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served, log, WINDOW + 1)
        for _ in range(3):
            log.note_refused(PermissionDenied("no grant covers it"))
        await trio.sleep(1)
        [first] = await bodies(store)
        assert (first["action"], first["principal"], first["rule"]) == (
            "call.refused",
            "user/ada",
            "policy: role viewer; PERMISSION_DENIED",
        )
    assert (await bodies(store))[1]["detail"]["further"] == 2


async def test_flood_cannot_fill_the_log(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    log = opened(store)
    for number in range(10_000):
        called(peer=f"10.0.{number >> 8}.{number & 255}")
        log.note_unproven(Unauthenticated("who?"), claimed=f"user/{number}")
    await served(log, 2 * WINDOW + 1)
    records = await bodies(store)
    assert len(records) == KINDS + 1
    assert KINDS + sum(record["detail"].get("further", 0) for record in records) == 10_000


async def test_a_nodes_refusals_do_not_make_a_viewers_refused_calls_nameless(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    log = opened(store)
    for number in range(200):
        refused = audit_entry(
            NOW, AuditAction.ORDER_REFUSED, organization="default", principal="", rule=f"made up {number}"
        )
        log.note(refused, origin="default/node/n")
    for number in range(10):
        called(principal=f"user/v{number}")
        log.note_refused(PermissionDenied("a viewer may not"))
    await log.close()
    records = await bodies(store)
    assert {record["principal"] for record in records if record["action"] == "call.refused"} == {
        f"user/v{number}" for number in range(10)
    }
    [many] = [record for record in records if record["rule"] == "many"]
    assert many["detail"]["origin"] == "default/node/n"


async def test_one_callers_many_calls_leave_room_for_the_names_of_others(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    log = opened(store)
    for number in range(500):
        called(peer=f"10.0.0.{number % 200}")
        log.note_call(ADA)
    called()
    log.note_call(replace(ADA, name="bob"))
    await log.close()
    [record] = await bodies(store)
    assert record["detail"]["default user/bob /m 192.0.2.7"] == 1
    assert sum(record["detail"].values()) == 501
    assert len(record["detail"]) == 10


async def test_calls_that_change_nothing_are_counted_in_one_record(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    log = opened(store)
    for number in range(500):
        called(peer=f"10.0.0.{number % 100}")
        log.note_call(ADA)
    await served(log, WINDOW + 1)
    [record] = await bodies(store)
    assert record["action"] == "calls"
    assert sum(record["detail"].values()) == 500
    assert record["detail"]["default user/ada /m 10.0.0.1"] == 5


async def test_what_a_failing_store_cannot_take_is_kept_and_written_later(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    log = opened(store)
    called()
    store.fail("full")
    log.note_refused(PermissionDenied("no"))
    await served(log, 1)
    store.heal()
    assert await bodies(store) == []
    await log.close()
    assert [record["action"] for record in await bodies(store)] == ["call.refused"]


async def test_address_that_fails_too_often_is_refused_and_that_is_counted(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    log = opened(store)
    attempts = FailedAttempts(per_minute=2, audit=log, clock=FixedClock())
    called()
    for _ in range(2):
        attempts.check("192.0.2.7", "node/a")
        attempts.failed(Unauthenticated("who?"), "192.0.2.7", "node/a")
    with pytest.raises(TooManyFailures) as caught:
        attempts.check("192.0.2.7", "node/a")
    assert caught.value.details == {"limit": "failed_auth_per_minute", "retry_after_s": "30"}
    attempts.check("192.0.2.8", "node/a")
    await log.close()
    assert [record["rule"].rpartition("; ")[2] for record in await bodies(store)] == [
        "UNAUTHENTICATED",
        "TOO_MANY_FAILURES",
        "UNAUTHENTICATED",
    ]


# -- heads


async def add(store: MemoryStore, count: int = 1) -> None:
    called()
    entry = audit_entry(NOW, AuditAction.JOB_STARTED, organization="default", principal="user/ada")
    await store.append_audit([entry] * count)


@within(30)
async def test_head_is_signed_when_what_was_added_follows_the_last() -> None:
    store, kept = MemoryStore(), KeptHeads()
    await add(store, 3)
    anchor = await open_anchor(store=store, file=kept, clock=FixedClock())
    await anchor.sign()
    assert kept.head is not None
    assert kept.head.head == await store.audit_head()
    await add(store, 700)
    again = await open_anchor(store=store, file=kept, clock=FixedClock())
    await again.sign()
    assert (kept.head.head.seq, again.broken) == (703, "")


@within(30)
async def test_log_that_was_written_anew_is_never_signed() -> None:
    store, kept = MemoryStore(), KeptHeads()
    await add(store, 3)
    anchor = await open_anchor(store=store, file=kept, clock=FixedClock())
    await anchor.sign()
    signed = kept.head
    store._audit[1:] = [chain_record(store._audit[0].head, _entry("user/eve")) for _ in range(1)]
    for _ in range(4):
        await add(store)
    await anchor.sign()
    assert "record 4" in anchor.broken
    assert kept.head is signed
    assert signed is not None
    with pytest.raises(AuditBroken, match="record 3 is not the one"):
        await verify_audit(store, expected=[signed.head], runs=False)


@within(30)
async def test_log_that_was_cut_off_is_never_signed() -> None:
    store, kept = MemoryStore(), KeptHeads()
    await add(store, 3)
    anchor = await open_anchor(store=store, file=kept, clock=FixedClock())
    await anchor.sign()
    signed = kept.head
    del store._audit[1:]
    await anchor.sign()
    assert "ends at 1" in anchor.broken
    assert kept.head is signed


@within(30)
async def test_head_that_does_not_hold_is_left_for_somebody_to_look_at() -> None:
    store, kept = MemoryStore(), KeptHeads(damaged=True)
    await add(store)
    anchor = await open_anchor(store=store, file=kept, clock=FixedClock())
    await anchor.sign()
    assert anchor.broken
    assert kept.head is None


# -- exports


@within(30)
async def test_export_verifies_by_itself_and_a_changed_one_does_not() -> None:
    store = MemoryStore()
    await add(store, 5)
    lines, before = [], bytes(32)
    for record in await records_of(store):
        lines.append(export_line(record, before))
        before = record.hash
    head = await store.audit_head()
    assert verify_export(lines, expected=[head]).records == 5
    assert verify_export(lines[2:], expected=[head]).start.seq == 2
    for wrong in (
        [line.replace("ada", "eve") for line in lines],
        [*lines[:2], *lines[3:]],
        lines[:-1],
        [lines[1], lines[0]],
        [export_line(record, None) for record in await records_of(store)],
        [],
        ["garbage"],
    ):
        with pytest.raises(AuditBroken):
            verify_export(wrong, expected=[head])


def _entry(principal: str) -> Any:
    return audit_entry(NOW, AuditAction.JOB_STARTED, organization="default", principal=principal)
