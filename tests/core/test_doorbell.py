"""Doorbells: what travels, who believes it, who is woken."""

from __future__ import annotations

import random
import uuid
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.serf.doorbell import (
    DOORBELL_SIZE,
    SIGNING_DOMAIN,
    Audience,
    BellRefusal,
    Doorbell,
    DoorbellKind,
    DoorbellRefused,
    attach_delay,
    build_bloom,
    decode,
    encode,
    false_wake_rate,
    is_for,
    organization_hash,
    short_key_id,
    verify,
)
from shovey_trio.core.serf.doorbell_plan import PlannedQuery, doorbell_frame, plan_doorbells
from shovey_trio.core.serf.size import NameDoesNotFit

_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
_KEYS = {short_key_id(_KEY.public_key()): _KEY.public_key()}
_JOB = str(uuid.UUID(int=7))
_SOURCE = "organization:controller-host"  # 28 characters
_NOW = 1_800_000_000
_BELL = Doorbell(
    kind=DoorbellKind.START,
    key_id=short_key_id(_KEY.public_key()),
    organization=organization_hash("org"),
    job_id=_JOB,
    spread_ms=25,
    issued_at=_NOW,
    expires_at=_NOW + 60,
    epoch=9,
)
_U32 = st.integers(min_value=0, max_value=2**32 - 1)


def _name(number: int) -> str:
    return f"organization:node-{number:05}.lan"[:28].ljust(28, "x")


def _verify(payload: bytes, *, now: float = _NOW, organization: str = "org", min_epoch: int = 9) -> Doorbell:
    return verify(payload, keys=_KEYS, organization=organization, now=now, skew=5, min_epoch=min_epoch)


def _plan(targets: list[str], **changes: object) -> PlannedQuery:
    arguments = {"signer": _KEY, "source_node": _SOURCE, "members": 50} | changes
    (query,) = plan_doorbells(_BELL, targets, **arguments)  # type: ignore[arg-type]  # changes of a test
    return query


@given(
    st.sampled_from(DoorbellKind),
    st.uuids(),
    _U32,
    _U32,
    st.integers(min_value=0, max_value=2**16 - 1),
    _U32,
    st.sampled_from(Audience),
    st.integers(min_value=1, max_value=16),
    st.binary(min_size=1, max_size=200),
)
def test_what_is_encoded_is_decoded(  # noqa: PLR0917 - Hypothesis gives them by position
    kind: DoorbellKind,
    job: uuid.UUID,
    spread: int,
    issued: int,
    lifetime: int,
    epoch: int,
    audience: Audience,
    hashes: int,
    bits: bytes,
) -> None:
    bell = replace(
        _BELL,
        kind=kind,
        job_id=str(job),
        spread_ms=spread,
        issued_at=issued,
        expires_at=issued + lifetime,
        epoch=epoch,
        audience=audience,
        bloom=bytes([hashes]) + bits if audience is Audience.BLOOM else b"",
    )
    payload = encode(bell, _KEY)
    assert len(payload) == DOORBELL_SIZE + len(bell.bloom)
    assert decode(payload) == bell


@given(st.binary(max_size=1500))
def test_any_bytes_are_a_doorbell_or_refused(payload: bytes) -> None:
    with pytest.raises(DoorbellRefused):
        _verify(payload)


@given(st.data())
def test_a_doorbell_with_one_bit_changed_is_refused(data: st.DataObject) -> None:
    payload = bytearray(_plan([_name(n) for n in range(20)]).payload)
    bit = data.draw(st.integers(min_value=0, max_value=len(payload) * 8 - 1))
    payload[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DoorbellRefused):
        _verify(bytes(payload))


def test_a_true_doorbell_is_believed_within_the_skew() -> None:
    payload = encode(_BELL, _KEY)
    assert _verify(payload) == _verify(payload, now=_NOW - 5) == _verify(payload, now=_NOW + 65) == _BELL


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"now": _NOW - 5.1}, BellRefusal.NOT_YET_VALID),
        ({"now": _NOW + 65.1}, BellRefusal.EXPIRED),
        ({"organization": "other"}, BellRefusal.WRONG_ORGANIZATION),
        ({"min_epoch": 10}, BellRefusal.STALE_EPOCH),
    ],
)
def test_a_true_doorbell_of_another_time_or_place_is_refused(changes: dict[str, object], reason: BellRefusal) -> None:
    with pytest.raises(DoorbellRefused) as caught:
        _verify(encode(_BELL, _KEY), **changes)  # type: ignore[arg-type]  # changes of a test
    assert caught.value.refusal is reason


def test_another_key_and_another_domain_are_refused() -> None:
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    payload = encode(_BELL, other)
    with pytest.raises(DoorbellRefused) as caught:
        _verify(payload)
    assert caught.value.refusal is BellRefusal.BAD_SIGNATURE

    with pytest.raises(DoorbellRefused) as caught:
        _verify(encode(replace(_BELL, key_id=b"none"), _KEY))
    assert caught.value.refusal is BellRefusal.UNKNOWN_KEY

    head = payload[:-64]
    for signed in (head, SIGNING_DOMAIN[:-1] + head):
        with pytest.raises(DoorbellRefused) as caught:
            _verify(head + _KEY.sign(signed))
        assert caught.value.refusal is BellRefusal.BAD_SIGNATURE


@pytest.mark.parametrize(
    "changes",
    [
        {"key_id": b"123"},
        {"organization": b""},
        {"job_id": "7"},
        {"spread_ms": 2**32},
        {"expires_at": _NOW - 1},
        {"expires_at": _NOW + 2**16},
        {"bloom": b"\x01\x01"},
        {"audience": Audience.BLOOM},
    ],
)
def test_a_field_that_does_not_fit_its_place_is_our_own_error(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the message is struct's, uuid's or ours
        encode(replace(_BELL, **changes), _KEY)  # type: ignore[arg-type]  # changes of a test


@given(st.sets(st.text(min_size=1, max_size=40), min_size=1, max_size=60), st.uuids(), st.integers(2, 300))
def test_a_bloom_filter_never_misses_a_target(names: set[str], job: uuid.UUID, size: int) -> None:
    bloom = build_bloom(sorted(names), str(job), size)
    assert len(bloom) == size
    bell = replace(_BELL, job_id=str(job), audience=Audience.BLOOM, bloom=bloom)
    assert all(is_for(bell, name) for name in names)


def test_listed_nodes_and_everybody_are_meant_without_a_filter() -> None:
    assert is_for(_BELL, "any")
    assert is_for(replace(_BELL, audience=Audience.ALL), "any")


def test_up_to_six_names_of_28_characters_are_listed_within_a_third_of_a_packet() -> None:
    six = [_name(n) for n in range(6)]
    query = _plan(six)
    assert query.filter_nodes == tuple(six)
    assert query.request_ack
    assert decode(query.payload).audience is Audience.LISTED
    assert _plan([_name(n) for n in range(7)]).filter_nodes == ()


@pytest.mark.parametrize(
    ("targets", "audience", "size"),
    [
        (1, Audience.LISTED, 463),
        (6, Audience.LISTED, 463),
        (7, Audience.BLOOM, 463),
        (100, Audience.BLOOM, 463),
        (150, Audience.BLOOM, 1024),
        (500, Audience.BLOOM, 1024),
        (600, Audience.ALL, 463),
        (10_000, Audience.ALL, 463),
    ],
)
@pytest.mark.parametrize("members", [50, 1_000, 20_000])
def test_one_query_of_bounded_size_for_any_number_of_targets(
    targets: int, audience: Audience, size: int, members: int
) -> None:
    names = [_name(n) for n in range(targets)]
    query = _plan(names, members=members)
    bell = _verify(query.payload)
    assert bell.audience is audience
    assert bell.spread_ms == 5 * targets
    assert query.targets == tuple(names)
    assert all(is_for(bell, name) for name in names)
    frame = doorbell_frame(_SOURCE, members)
    assert query.size == frame.size(len(query.payload), query.filter_nodes) <= size
    if audience is Audience.BLOOM:
        assert query.size == size  # what is paid for is used


@pytest.mark.parametrize(("targets", "claimed"), [(100, 4.6e-4), (500, 29e-4)])
def test_false_wakes_are_as_documented(targets: int, claimed: float) -> None:
    query = _plan([_name(n) for n in range(targets)])
    bell = decode(query.payload)
    assert false_wake_rate(targets, len(bell.bloom)) == pytest.approx(claimed, rel=0.02)
    others = 40_000
    woken = sum(is_for(bell, f"other:{n}") for n in range(others))
    assert woken / others < 2 * claimed  # twice as many are four standard deviations or more
    assert woken > 0


def test_false_wakes_hit_other_nodes_in_the_next_job() -> None:
    names = [_name(n) for n in range(500)]
    woken = []
    for job in (uuid.UUID(int=1), uuid.UUID(int=2)):
        (query,) = plan_doorbells(replace(_BELL, job_id=str(job)), names, signer=_KEY, source_node=_SOURCE, members=50)
        woken.append({n for n in range(20_000) if is_for(decode(query.payload), f"other:{n}")})
    assert woken[0]
    assert woken[0] != woken[1]


def test_no_targets_no_query() -> None:
    assert plan_doorbells(_BELL, [], signer=_KEY, source_node=_SOURCE, members=3) == ()


def test_an_agent_whose_own_name_leaves_no_room_is_named() -> None:
    with pytest.raises(NameDoesNotFit) as caught:
        _plan(["org:a"], source_node="x" * 900)
    assert caught.value.details["node"] == "x" * 900


def test_attaching_is_spread_evenly_and_the_same_each_time() -> None:
    delays = [attach_delay(_name(n), _JOB, 5_000) for n in range(1_000)]
    assert delays == [attach_delay(_name(n), _JOB, 5_000) for n in range(1_000)]
    assert all(0 <= delay < 5 for delay in delays)
    per_second = [sum(second <= delay < second + 1 for delay in delays) for second in range(5)]
    assert all(140 < count < 260 for count in per_second)
    assert attach_delay(_name(1), _JOB, 0) == 0
    other = str(uuid.UUID(int=8))
    random_name = _name(random.Random(1).randrange(1000))
    assert attach_delay(random_name, other, 5_000) != attach_delay(random_name, _JOB, 5_000)
