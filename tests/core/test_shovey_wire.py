"""The Shovey wire: byte for byte what goiardi and schob were recorded sending."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey, generate_private_key
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.shovey.protocol.wire import (
    Action,
    PayloadMalformed,
    cancel_fields,
    format_time,
    go_json,
    parse_order,
    parse_status,
    parse_time,
    sign_payload,
    signed_text,
    start_fields,
    status_payload,
    verify_order,
)

_ROWS = [json.loads(line) for line in Path(__file__).parents[1].joinpath("golden/serf.jsonl").read_text().splitlines()]
_VECTORS = [row for row in _ROWS if row["label"].startswith("signature.vector")]


def _sent(query: str) -> list[bytes]:
    """The payloads of a query as they were handed to serf."""
    bodies = [row["obj"] for row in _ROWS if row.get("dir") == "c>s" and row.get("obj", {}).get("Name") == query]
    return [body["Payload"]["$bytes"].encode() for body in bodies]


@pytest.fixture(scope="module")
def key() -> RSAPrivateKey:
    return generate_private_key(public_exponent=65537, key_size=2048)


def _public(vector: dict[str, Any]) -> RSAPublicKey:
    # One goiardi signed them all; not every row repeats its key.
    public = load_pem_public_key(vector.get("public_key_pem", _VECTORS[0]["public_key_pem"]).encode())
    assert isinstance(public, RSAPublicKey)
    return public


def test_there_are_recorded_vectors() -> None:
    assert len(_VECTORS) >= 10
    assert len(_sent("shovey")) >= 5
    assert len(_sent("node_status")) >= 1


@pytest.mark.parametrize("vector", _VECTORS, ids=lambda vector: parse_order(vector["payload_json"].encode()).command)
def test_recorded_orders_verify_over_the_recorded_text(vector: dict[str, Any]) -> None:
    order = parse_order(vector["payload_json"].encode())
    assert order.signed_text == vector["signed_text"].encode()
    assert verify_order(order, _public(vector))


@pytest.mark.parametrize("payload", _sent("shovey"))
def test_recorded_orders_are_rebuilt_byte_for_byte(payload: bytes) -> None:
    order = parse_order(payload)
    signature = json.loads(payload)["signature"]
    match order.action:
        case Action.START:
            assert order.timeout is not None
            fields = start_fields(
                job_id=order.run_id, command=order.command, run_timeout=order.timeout, time=order.time
            )
        case Action.CANCEL:
            fields = cancel_fields(job_id=order.run_id, time=order.time)
    assert go_json({**fields, "signature": signature}, sort_keys=True) == payload
    assert order.time == format_time(order.issued_at, utc_offset=0)


def test_recorded_escapes_are_go_s() -> None:
    (vector,) = [vector for vector in _VECTORS if "unicode" in vector["label"]]
    assert go_json(json.loads(vector["payload_json"]), sort_keys=True) == vector["payload_json"].encode()


def test_recorded_heartbeats_are_rebuilt_byte_for_byte() -> None:
    for payload in _sent("node_status"):
        said = parse_status(payload)
        assert status_payload(said.node, said.status) == payload


def test_a_signed_order_verifies_and_any_changed_byte_of_it_does_not(key: RSAPrivateKey) -> None:
    fields = start_fields(job_id="j-1", command="chef-client", run_timeout=30, time="2026-11-22T03:45:56Z")
    payload = sign_payload(fields, key)
    assert verify_order(parse_order(payload), key.public_key())
    for changed in (
        payload.replace(b"chef-client", b"chef-clienu"),
        payload.replace(b'"30"', b'"31"'),
        payload.replace(b"03:45:56", b"03:45:57"),
        payload.replace(b"j-1", b"j-2"),
        payload.replace(b'"action"', b'"added":"x","action"'),
    ):
        assert changed != payload
        assert not verify_order(parse_order(changed), key.public_key())


def test_a_cancel_order_is_no_start_order(key: RSAPrivateKey) -> None:
    payload = sign_payload(cancel_fields(job_id="j-1", time="2026-11-22T03:45:56Z"), key)
    started = payload.replace(b'"cancel"', b'"start","command":"x","timeout":"1"')
    assert not verify_order(parse_order(started), key.public_key())


def test_a_timeout_is_rounded_up_because_zero_would_end_the_command_at_once() -> None:
    timeouts = [start_fields(job_id="j", command="c", run_timeout=t, time="t")["timeout"] for t in (0.2, 1, 2.9, 300)]
    assert timeouts == ["1", "1", "3", "300"]


def test_times_are_local_with_their_offset() -> None:
    at = parse_time("2026-11-22T03:45:56Z")
    assert format_time(at + 0.9, utc_offset=0) == "2026-11-22T03:45:56Z"
    assert format_time(at, utc_offset=5400) == "2026-11-22T05:15:56+01:30"
    assert parse_time(format_time(at, utc_offset=-3600)) == at


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"not json",
        b"[]",
        b"\xff\xfe",
        b'{"action":"start","command":"x","run_id":"r","signature":"","time":"2026-11-22T03:45:56Z","timeout":30}',
        b'{"action":"reboot","run_id":"r","signature":"","time":"2026-11-22T03:45:56Z"}',
        b'{"action":"cancel","run_id":"","signature":"","time":"2026-11-22T03:45:56Z"}',
        b'{"action":"cancel","run_id":"r","signature":"!","time":"2026-11-22T03:45:56Z"}',
        b'{"action":"cancel","run_id":"r","signature":"","time":"yesterday"}',
        b'{"action":"cancel","run_id":"r","signature":"","time":"2026-13-45T03:45:56Z"}',
        b'{"action":"start","run_id":"r","signature":"","time":"2026-11-22T03:45:56Z","timeout":"30"}',
        b'{"action":"start","command":"x","run_id":"r","signature":"","time":"2026-11-22T03:45:56Z","timeout":"1.5"}',
        b"[" * 100_000,
        b" " * 70_000 + b"{}",
    ],
)
def test_what_is_no_order_is_malformed_and_nothing_else(payload: bytes) -> None:
    with pytest.raises(PayloadMalformed):
        parse_order(payload)


@given(payload=st.binary(max_size=200))
def test_no_bytes_do_more_than_be_malformed(payload: bytes) -> None:
    for parse in (parse_order, parse_status):
        with pytest.raises(PayloadMalformed):
            parse(payload)


@given(command=st.text(max_size=80), job_id=st.text(min_size=1, max_size=40))
def test_any_text_survives_the_wire(command: str, job_id: str) -> None:
    fields = start_fields(job_id=job_id, command=command, run_timeout=1, time="2026-11-22T03:45:56Z")
    order = parse_order(go_json({**fields, "signature": ""}, sort_keys=True))
    assert (order.run_id, order.command) == (job_id, command)
    assert order.signed_text == signed_text(fields)


def test_replays_share_a_key_and_repeats_with_a_new_time_do_not() -> None:
    def order(time: str) -> bytes:
        return parse_order(go_json({**cancel_fields(job_id="j", time=time), "signature": ""})).replay_key

    assert order("2026-11-22T03:45:56Z") == order("2026-11-22T03:45:56Z")
    assert order("2026-11-22T03:45:56Z") != order("2026-11-22T03:45:57Z")
