"""What reaches us through serf: the agent's RPC stream, doorbells, and the payloads of old nodes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from functools import cache
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from fuzz.golden import records
from fuzz.target import Target
from shovey_trio.core.serf import doorbell
from shovey_trio.core.serf.ipc import NEED_DATA, ClientCodec, ConnectionEnded, RemoteProtocolError, Reply
from shovey_trio.core.serf.records import Member, MembersChanged, RecordMalformed, parse_members
from shovey_trio.core.serf.wire import Command
from shovey_trio.shovey.protocol.wire import PayloadMalformed, parse_order, parse_status, verify_order

# --- the RPC stream of the serf agent -------------------------------------------------------------------------

_SENT: Final = (
    (Command.HANDSHAKE, {"Version": 1}),
    (Command.AUTH, {"AuthKey": "key"}),
    (Command.MEMBERS, None),
    (Command.STREAM, {"Type": "*"}),
    (Command.QUERY, {"Name": "shovey-trio"}),
    (Command.MONITOR, {"LogLevel": "INFO"}),
    (Command.JOIN, {"Existing": []}),
    (Command.LIST_KEYS, None),
)


def _ipc(data: bytes) -> None:
    """The stream in one piece and in pieces of the size the first byte says: the events must be the same."""
    size = data[0] % 17 + 1 if data else 1
    whole, cut = _events([data]), _events([data[at : at + size] for at in range(0, len(data), size)])
    assert whole == cut, (whole, cut)


def _events(pieces: list[bytes]) -> list[object]:
    codec = ClientCodec(max_object_size=64 * 1024)
    for command, body in _SENT:
        codec.send(command, body)
    found: list[object] = []
    try:
        for piece in (*pieces, b""):
            codec.receive_data(piece)
            while (event := codec.next_event()) is not NEED_DATA:
                found.append(event)
                if isinstance(event, Reply) and event.command is Command.MEMBERS and event.body is not None:
                    found.append(_members(event))
                if isinstance(event, MembersChanged):
                    assert all(isinstance(member, Member) for member in event.members)
                if isinstance(event, ConnectionEnded):
                    return found
            if not piece:
                break
    except RemoteProtocolError:
        found.append(RemoteProtocolError)
    return found


def _members(reply: Reply) -> object:
    try:
        return parse_members(reply.body or {})
    except RecordMalformed:
        return RecordMalformed


def _ipc_seeds() -> Iterator[bytes]:
    for record in records("serf-rpc.jsonl"):
        yield bytes.fromhex(record["response_hex"])
    for record in records("serf.jsonl"):
        if record.get("dir") == "s>c" and "hex" in record:
            yield bytes.fromhex(record["hex"])


# --- doorbells ------------------------------------------------------------------------------------------------

_KEY: Final = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
_KEYS: Final = {doorbell.short_key_id(_KEY.public_key()): _KEY.public_key()}
_NOW: Final = 1_800_000_000
_ORGANIZATION: Final = "default"


def _rung(data: bytes) -> None:
    """Bytes as they come; the same signed by the right key, because nothing behind the signature is reached else."""
    for payload in (data, data + _KEY.sign(doorbell.SIGNING_DOMAIN + data)):
        try:
            heard = doorbell.verify(payload, keys=_KEYS, organization=_ORGANIZATION, now=_NOW, skew=900.0)
        except doorbell.DoorbellRefused:
            continue
        assert payload is not data or heard.key_id in _KEYS
        assert heard == doorbell.decode(doorbell.encode(heard, _KEY))
        doorbell.is_for(heard, "default:web-1")
        assert 0 <= doorbell.attach_delay("web-1", heard.job_id, heard.spread_ms) <= heard.spread_ms / 1000


def _doorbell_seeds() -> Iterator[bytes]:
    job = str(uuid.UUID(int=7))
    for kind in doorbell.DoorbellKind:
        for audience in doorbell.Audience:
            bell = doorbell.Doorbell(
                kind=kind,
                key_id=doorbell.short_key_id(_KEY.public_key()),
                organization=doorbell.organization_hash(_ORGANIZATION),
                job_id=job,
                spread_ms=25,
                issued_at=_NOW,
                expires_at=_NOW + 60,
                epoch=9,
                audience=audience,
                bloom=doorbell.build_bloom(["default:web-1"], job, 40) if audience is doorbell.Audience.BLOOM else b"",
            )
            payload = doorbell.encode(bell, _KEY)
            yield payload
            yield payload[:-64]


# --- payloads of the old protocol -----------------------------------------------------------------------------


def _shovey_order(data: bytes) -> None:
    order = parse_order(data)
    assert order.run_id
    assert order.replay_key.startswith(order.run_id.encode())
    verify_order(order, _schob_key())
    assert order.timeout is None or order.timeout >= 1


@cache
def _schob_key() -> RSAPublicKey:
    pem = next(record["public_key_pem"] for record in records("serf.jsonl") if "public_key_pem" in record)
    key = load_pem_public_key(pem.encode())
    assert isinstance(key, RSAPublicKey)
    return key


def _shovey_seeds() -> Iterator[bytes]:
    for record in records("serf.jsonl"):
        if "payload_json" in record:
            yield record["payload_json"].encode()


def _status_seeds() -> Iterator[bytes]:
    yield b'{"node":"foobar.local","status":"up"}'
    yield b'{"node":"\xc3\xa4","status":"down"}'


def _status(data: bytes) -> None:
    said = parse_status(data)
    assert said.node
    assert said.status


TARGETS: Final = (
    Target(name="serf-ipc", decode=_ipc, seeds=_ipc_seeds, max_len=8192),
    Target(name="doorbell", decode=_rung, seeds=_doorbell_seeds, max_len=1500),
    Target(name="shovey-order", decode=_shovey_order, seeds=_shovey_seeds, refusals=(PayloadMalformed,)),
    Target(name="shovey-status", decode=_status, seeds=_status_seeds, refusals=(PayloadMalformed,), max_len=1024),
)
