"""The audit log's chain: what was written verifies, and nothing else does."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.audit.chain import ChainVerifier
from shovey_trio.core.audit.head import decode_head, encode_head, sign_head
from shovey_trio.core.audit.records import (
    GENESIS,
    MAX_DETAIL,
    AuditAction,
    AuditBroken,
    AuditEntry,
    AuditHead,
    AuditOutcome,
    AuditRecord,
    chain_record,
    parse_head,
    record_hash,
)
from shovey_trio.core.audit.runs import RunsDigest, run_line
from shovey_trio.core.audit.tally import EACH, KINDS, AuditTally
from shovey_trio.core.errors import InvalidRequest
from shovey_trio.core.jobs.model import Run, ToldEnd
from shovey_trio.core.jobs.states import RunState

NOW = 1_800_000_000.5


def entry(**fields: Any) -> AuditEntry:
    values: dict[str, Any] = {
        "at": NOW,
        "organization": "default",
        "action": AuditAction.JOB_STARTED,
        "outcome": AuditOutcome.ALLOWED,
        "principal": "user/ada",
    }
    return AuditEntry(**{**values, **fields})


def chain(length: int) -> list[AuditRecord]:
    records: list[AuditRecord] = []
    for number in range(length):
        records.append(chain_record(records[-1].head if records else GENESIS, entry(subject=f"job/{number}")))
    return records


def verify(records: Sequence[AuditRecord], *expected: AuditHead, start: AuditHead = GENESIS) -> AuditHead:
    verifier = ChainVerifier(start, expected)
    for record in records:
        verifier.feed(record)
    return verifier.finish()


def test_what_was_written_verifies() -> None:
    records = chain(5)
    assert verify(records, records[2].head, records[-1].head) == records[-1].head
    assert json.loads(records[1].body)["subject"] == "job/1"


def changed(records: list[AuditRecord], at: int) -> list[AuditRecord]:
    body = records[at].body.replace("user/ada", "user/eve")
    return [*records[:at], replace(records[at], body=body), *records[at + 1 :]]


def rehashed(records: list[AuditRecord], at: int) -> list[AuditRecord]:
    """As who knows how the chain is made would do it: everything after the change is made anew."""
    forged = list(records[:at])
    for record in changed(records, at)[at:]:
        previous = forged[-1].hash if forged else GENESIS.hash
        forged.append(replace(record, hash=record_hash(previous, record.body)))
    return forged


def inserted(records: list[AuditRecord], at: int) -> list[AuditRecord]:
    return [*records[:at], chain_record(records[at - 1].head if at else GENESIS, entry()), *records[at:]]


def renumbered(records: list[AuditRecord], at: int) -> list[AuditRecord]:
    """One is taken out, and those after it close the gap."""
    rest = [replace(record, seq=record.seq - 1) for record in records[at + 1 :]]
    return [*records[:at], *rest]


TAMPERED: dict[str, Callable[[list[AuditRecord], int], list[AuditRecord]]] = {
    "changed": changed,
    "changed and hashed again": rehashed,
    "deleted": lambda records, at: [*records[:at], *records[at + 1 :]],
    "deleted and numbered again": renumbered,
    "inserted": inserted,
    "swapped": lambda records, at: [*records[: at - 1], records[at], records[at - 1], *records[at + 1 :]],
    "cut off": lambda records, at: records[:at],
    "filed under another organization": lambda records, at: [
        *records[:at],
        replace(records[at], organization="other"),
        *records[at + 1 :],
    ],
    "filed under another time": lambda records, at: [
        *records[:at],
        replace(records[at], at=NOW + 1),
        *records[at + 1 :],
    ],
}


@pytest.mark.parametrize("kind", TAMPERED)
@pytest.mark.parametrize("at", [1, 3, 5])
def test_tampering_is_found(kind: str, at: int) -> None:
    records = chain(6)
    head = records[-1].head
    tampered = TAMPERED[kind](records, at)
    assert tampered != records
    with pytest.raises(AuditBroken):
        verify(tampered, head)


@given(st.data())
def test_any_changed_byte_of_any_record_is_found(data: st.DataObject) -> None:
    records = chain(4)
    at = data.draw(st.integers(0, 3))
    body = records[at].body
    place = data.draw(st.integers(0, len(body) - 1))
    letter = data.draw(st.characters(codec="ascii").filter(lambda found: found != body[place]))
    records[at] = replace(records[at], body=body[:place] + letter + body[place + 1 :])
    with pytest.raises(AuditBroken):
        verify(records)


def test_missing_beginning_is_found_unless_a_record_says_that_it_was_pruned() -> None:
    records = chain(4)
    with pytest.raises(AuditBroken, match="no record says"):
        verify(records[2:], start=records[1].head)
    cut = records[1].head
    said = entry(action=AuditAction.AUDIT_PRUNED, detail={"through": cut.seq, "hash": cut.hash.hex(), "records": 2})
    pruned = [*records[2:], chain_record(records[-1].head, said)]
    assert verify(pruned, cut, records[0].head, start=cut) == pruned[-1].head
    with pytest.raises(AuditBroken, match="is not the head that was kept"):
        verify(pruned, replace(cut, hash=bytes(32)), start=cut)


def test_details_that_are_too_long_become_their_digest() -> None:
    record = chain_record(GENESIS, entry(detail={"nodes": "x" * (MAX_DETAIL + 1)}))
    assert set(json.loads(record.body)["detail"]) == {"too_long", "sha256", "fields"}


@pytest.mark.parametrize("text", ["", "1", "1:", "0:" + "0" * 64, "1:" + "0" * 63, "x:" + "0" * 64, "-1:" + "0" * 64])
def test_what_is_no_head_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_head(text)


def test_signed_head_survives_and_no_other_does() -> None:
    key = Ed25519PrivateKey.generate()
    head = chain(3)[-1].head
    signed = sign_head(head, NOW, key)
    text = encode_head(signed)
    assert decode_head(text, key.public_key()) == signed
    assert parse_head(str(head)) == head
    for forged in (text.replace(f"{head.seq}:", f"{head.seq - 1}:"), text.replace(repr(NOW), repr(NOW + 1)), "{}", ""):
        assert forged != text
        with pytest.raises(AuditBroken):
            decode_head(forged, key.public_key())
    with pytest.raises(AuditBroken, match="another key"):
        decode_head(text, Ed25519PrivateKey.generate().public_key())


# -- runs


def run(node: str = "web-1", **fields: Any) -> Run:
    values: dict[str, Any] = {
        "id": f"run-{node}",
        "job_id": "job",
        "organization": "default",
        "created_at": NOW,
        "updated_at": NOW,
        "nonce": bytes(16),
        "state": RunState.SUCCEEDED,
        "key_id": "k-1",
    }
    return Run(node=node, **{**values, **fields})


@pytest.mark.parametrize(
    "change",
    [
        {"node": "web-2"},
        {"key_id": "k-2"},
        {"state": RunState.FAILED},
        {"exit_code": 1},
        {"cause": "other"},
        {"agent_instance": "i-2"},
        {"finished_at": NOW},
        {"nonce": bytes([1] * 16)},
    ],
)
def test_digest_covers_who_ran_what_with_which_key_and_how_it_ended(change: dict[str, Any]) -> None:
    one, other = RunsDigest(), RunsDigest()
    one.add(run())
    other.add(replace(run(), **change))
    assert one.hexdigest != other.hexdigest


def test_digest_is_not_changed_by_what_a_node_says_after_the_end() -> None:
    late = ToldEnd(state=RunState.FAILED, cause="", exit_code=1, signal=None, reported_at=NOW)
    assert run_line(run()) == run_line(run(late_report=late, updated_at=NOW + 1))


# -- the tally


def test_first_of_a_kind_is_recorded_and_more_are_counted() -> None:
    tally = AuditTally()
    assert [tally.note(entry(at=NOW + n)) for n in range(5)] == [True, False, False, False, False]
    [summary] = tally.close_window()
    assert summary.detail == {"further": 4, "first_at": NOW, "last_at": NOW + 4}
    assert tally.close_window() == []
    assert tally.note(entry())


@given(st.lists(st.integers(0, 100), max_size=400))
def test_flood_of_many_kinds_is_a_fixed_number_of_records(kinds: list[int]) -> None:
    tally = AuditTally()
    recorded = sum(tally.note(entry(principal="", peer=f"192.0.2.{kind}")) for kind in kinds)
    closed = tally.close_window()
    assert recorded == min(len(set(kinds)), KINDS)
    assert len(closed) <= KINDS + 1
    assert recorded + sum(summary.detail["further"] for summary in closed) == len(kinds)


def test_one_origin_has_a_part_of_the_kinds_and_others_keep_their_names() -> None:
    tally = AuditTally()
    for number in range(100):
        tally.note(entry(principal="user/loud", rule=f"reason {number}"))
    assert all(tally.note(entry(principal=f"user/{number}")) for number in range(10))
    [loud] = [summary for summary in tally.close_window() if summary.principal == "user/loud"]
    assert (loud.rule, loud.detail["origin"], loud.detail["further"]) == ("many", "user/loud", 100 - (EACH - 1))


def test_one_action_takes_no_kind_of_another() -> None:
    tally = AuditTally()
    for number in range(100):
        tally.note(entry(action=AuditAction.AUTHENTICATION_FAILED, peer=f"192.0.2.{number}", principal=""))
    assert tally.note(entry(action=AuditAction.CALL_REFUSED))
