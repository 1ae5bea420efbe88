"""What decides what runs: orders, key sets, whitelists, enrolment, certificates and the proofs of their holders."""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import DecodeError

from fuzz.target import Target
from shovey_trio.core.errors import InvalidCertificateRequest, InvalidEnrollmentToken, InvalidRequest, Unauthenticated
from shovey_trio.core.jobs.command_input import CommandInput, Secrets
from shovey_trio.core.trust.enrollment import JoinTicket, decode_join, encode_join, encode_token, token_digest
from shovey_trio.core.trust.key_sets import (
    KEY_SET_DOMAIN,
    KeySet,
    KeySetRefused,
    KeyState,
    PublicKey,
    encode_key_set,
    key_id_of,
    sign_key_set,
    verify_key_set,
)
from shovey_trio.core.trust.order_signing import SigningKey
from shovey_trio.core.trust.orders import NodeIdentity, Order, OrderKind, RefusalReason, judge_order
from shovey_trio.core.whitelist.permit import InputRefused, permit
from shovey_trio.core.whitelist.whitelist import WhitelistInvalid, parse_whitelist, whitelist_warnings
from shovey_trio.identity.authority import create_authority
from shovey_trio.identity.names import node_identity, parse_identity
from shovey_trio.identity.renewal import prove_possession, verify_certificate, verify_renewal
from shovey_trio.identity.requests import make_request, read_request
from shovey_trio.rpc.convert import order_bytes, seal_secrets, signed_order_message, signed_order_value
from shovey_trio.rpc.order_codec import parse_order
from shovey_trio.v1 import order_pb2

_NOW: Final = 1_800_000_000.0
_KEY: Final = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
_US: Final = NodeIdentity(organization="default", node="web-1", agent_instance="instance")

# --- orders ---------------------------------------------------------------------------------------------------


def _order(data: bytes) -> None:
    """An order's bytes, as they are read behind a signature that holds; never an exception, whatever they are."""
    order = parse_order(data)
    if isinstance(order, RefusalReason):
        return
    judged = judge_order(order, identity=_US, controller_now=_NOW, lowest_epoch=5)
    if judged is None:
        assert (order.organization, order.node, order.agent_instance) == ("default", "web-1", "instance")
        assert order.kind in (OrderKind.START, OrderKind.CANCEL)
        assert order.epoch >= 5
        assert 0 <= order.run_timeout < float("inf")
        # What this agent understood is all that was said.
        again = parse_order(order_bytes(order))
        assert not isinstance(again, RefusalReason)
        assert (again.command, again.input, again.nonce) == (order.command, order.input, order.nonce)


def _sealed(data: bytes) -> None:
    """The secrets beside an order whose digest covers them."""
    digest = hashlib.sha256(data).digest()
    raw = order_pb2.Order(kind=order_pb2.ORDER_KIND_START, sealed_digest=digest).SerializeToString()
    order = parse_order(raw, data)
    assert isinstance(order, RefusalReason) or order.kind is OrderKind.START
    assert parse_order(raw, data + b"x") is RefusalReason.BAD_SIGNATURE


def _signed_order(data: bytes) -> None:
    message = order_pb2.SignedOrder.FromString(data)
    signed = signed_order_value(message)
    assert signed_order_value(signed_order_message(signed)) == signed
    parse_order(signed.order, signed.sealed)


def an_order(**changes: object) -> Order:
    """A start order for ``web-1`` that is good, but for ``changes``."""
    fields: dict[str, object] = {
        "organization": "default",
        "node": "web-1",
        "agent_instance": "instance",
        "job_id": "a" * 36,
        "run_id": "b" * 36,
        "kind": OrderKind.START,
        "command": "chef-client",
        "run_timeout": 60.0,
        "kill_grace": 10.0,
        "issued_at": _NOW,
        "expires_at": _NOW + 60,
        "nonce": b"n" * 16,
        "epoch": 7,
        "input": CommandInput(args={"name": "value"}, env={"A": "b"}, stdin=b"in", user="root"),
    }
    return Order(**{**fields, **changes})  # type: ignore[arg-type]  # the fields of an order


def _order_seeds() -> Iterator[bytes]:
    for kind in OrderKind:
        yield order_bytes(an_order(kind=kind))
    yield order_bytes(an_order(expires_at=_NOW - 1))
    yield order_bytes(an_order(node="web-2"))


def _sealed_seeds() -> Iterator[bytes]:
    yield seal_secrets(Secrets(env={"TOKEN": "secret"}), b"s" * 16)
    yield seal_secrets(Secrets(stdin=b"secret"), b"s" * 16)


def _signed_order_seeds() -> Iterator[bytes]:
    for raw in _order_seeds():
        yield order_pb2.SignedOrder(order=raw, signature=_KEY.sign(raw), key_id="k" * 16).SerializeToString()


def signing_key() -> SigningKey:
    """The key that this installation signs orders with."""
    public = _KEY.public_key().public_bytes_raw()
    return SigningKey(key_id=key_id_of(public), private_key=_KEY, created_at=_NOW)


def trusted_keys() -> KeySet:
    """The set that has it."""
    public = PublicKey(public_bytes=signing_key().public_bytes, state=KeyState.ACTIVE, not_before=int(_NOW))
    return KeySet(organization="default", serial=1, keys=(public,))


# --- key sets -------------------------------------------------------------------------------------------------


def _key_set(data: bytes) -> None:
    """The bytes as they come, and as a body that the root signed."""
    root = _KEY.public_key().public_bytes_raw()
    for signed in (data, _KEY.sign(KEY_SET_DOMAIN + data) + data):
        try:
            keys = verify_key_set(signed, root, "default", minimum_serial=2)
        except KeySetRefused:
            continue
        assert keys.serial >= 2
        # One form: whoever reads the bytes on another machine reads what is meant here.
        assert encode_key_set(keys) == signed[64:]
        assert len(keys.usable(_NOW)) <= len(keys.keys)


def _key_set_seeds() -> Iterator[bytes]:
    active = PublicKey(public_bytes=b"a" * 32, state=KeyState.ACTIVE, not_before=1_700_000_000)
    retiring = PublicKey(
        public_bytes=b"r" * 32, state=KeyState.RETIRING, not_before=1_600_000_000, not_after=1_800_000_000
    )
    revoked = PublicKey(public_bytes=b"v" * 32, state=KeyState.REVOKED, not_before=1_500_000_000)
    for keys in ((active,), (active, retiring), (revoked, active)):
        body = encode_key_set(KeySet(organization="default", serial=2, keys=keys))
        yield body
        yield sign_key_set(body, _KEY)


# --- whitelists -----------------------------------------------------------------------------------------------

_GIVEN: Final = (
    CommandInput(),
    CommandInput(args={"name": "web-1", "level": "3"}, env={"LANG": "C"}),
    CommandInput(args={"name": "-rf"}, stdin=b"x" * 100, user="www-data"),
)


def _whitelist(data: bytes) -> None:
    whitelist = parse_whitelist(data)
    for entry in whitelist.entries.values():
        assert entry.argv
        assert entry.argv[0]
        for given in _GIVEN:
            try:
                permitted = permit(entry, given)
            except InputRefused:
                continue
            assert permitted.argv
            assert not any("\0" in word for word in permitted.argv)
            assert len(permitted.stdin) <= entry.stdin
    list(whitelist_warnings(whitelist))


def _whitelist_seeds() -> Iterator[bytes]:
    yield b'{"whitelist": {"chef-client": "chef-client -o \'role[base]\'"}}'
    entries = {
        "plain": {"argv": ["/bin/echo", "hello"]},
        "template": {
            "argv": ["/bin/echo", "{name}", ["--level", "{level}"]],
            "args": {
                "name": {"type": "string", "pattern": "[a-z0-9-]+", "max_length": 20},
                "level": {"type": "int", "min": 1, "max": 9, "optional": True},
            },
        },
        "kinds": {
            "argv": ["ls", "{dir}", "{how}"],
            "args": {
                "dir": {"type": "path", "under": ["/var/log"]},
                "how": {"type": "enum", "values": ["-l", "-a"], "default": "-l"},
            },
            "user": "root",
            "users": ["www-data"],
            "group": "adm",
            "cwd": "/var/lib",
            "env": {"LANG": "C", "MODE": {"type": "string"}},
            "umask": "022",
            "timeout": 30,
            "nice": 5,
            "limits": {"memory": "10 MiB", "cpu_seconds": 5, "open_files": 20, "processes": 3},
            "stdin": 1000,
            "lock": "one",
            "concurrency": 2,
        },
    }
    yield json.dumps({"whitelist": entries}).encode()
    for name, entry in entries.items():
        yield json.dumps({name: entry}).encode()


# --- certificates, requests, tokens ---------------------------------------------------------------------------

_JOIN: Final = "shovey-join-1."
_CHECKSUM: Final = 4
_CA: Final = create_authority(organization="default", key=ec.derive_private_key(7, ec.SECP256R1()), now=_NOW)
_HOLDER: Final = ec.derive_private_key(11, ec.SECP256R1())


def _certificate(data: bytes) -> None:
    verified = verify_certificate(data, authorities=[_CA.certificate], revoked=(), now=_NOW)
    assert verified.identity.organization == "default"


def _certificate_request(data: bytes) -> None:
    assert read_request(data).key_size == 256


def _renewal(data: bytes) -> None:
    """A proof and a request for a good certificate: only the holder's own pair is taken."""
    size = data[0] if data else 0
    proof, csr = data[1 : 1 + size], data[1 + size :]
    chain = _CA.issue_client(csr=make_request(_HOLDER), identity=node_identity("default", "web-1"), now=_NOW).chain
    verify_renewal(certificate=chain, csr=csr, proof=proof, authorities=[_CA.certificate], revoked=(), now=_NOW)


def _join(data: bytes) -> None:
    """The text as it comes, and the bytes as the body of one whose checksum holds."""
    body = hashlib.sha256(data).digest()[:_CHECKSUM] + data
    for text in (data.decode("utf-8", "surrogateescape"), _JOIN + urlsafe_b64encode(body).rstrip(b"=").decode("ascii")):
        try:
            ticket = decode_join(text)
        except InvalidRequest:
            continue
        assert decode_join(encode_join(ticket)) == ticket


def _token(data: bytes) -> None:
    assert len(token_digest(data.decode("utf-8", "surrogateescape"))) >= 32


def _identity(data: bytes) -> None:
    found = parse_identity(data.decode("utf-8", "replace").split("\n"))
    assert parse_identity([found.uri]) == found


def _certificate_seeds() -> Iterator[bytes]:
    yield _CA.issue_client(csr=make_request(_HOLDER), identity=node_identity("default", "web-1"), now=_NOW).chain
    yield _CA.pem


def _request_seeds() -> Iterator[bytes]:
    yield make_request(_HOLDER)


def _renewal_seeds() -> Iterator[bytes]:
    csr = make_request(_HOLDER)
    proof = prove_possession(_HOLDER, csr)
    yield bytes([len(proof)]) + proof + csr


def _join_seeds() -> Iterator[bytes]:
    text = encode_join(
        JoinTicket(
            organization="default",
            node="web-1",
            enroll_address="controller:7443",
            ca_certificate=b"ca" * 40,
            secret=b"s" * 32,
        )
    )
    yield text.encode()
    yield urlsafe_b64decode(text.removeprefix(_JOIN) + "==")[_CHECKSUM:]


TARGETS: Final = (
    Target(name="order", decode=_order, seeds=_order_seeds),
    Target(name="order-secrets", decode=_sealed, seeds=_sealed_seeds),
    Target(name="signed-order", decode=_signed_order, seeds=_signed_order_seeds, refusals=(DecodeError,)),
    Target(name="key-set", decode=_key_set, seeds=_key_set_seeds, max_len=20_000),
    Target(name="whitelist", decode=_whitelist, seeds=_whitelist_seeds, refusals=(WhitelistInvalid,), max_len=8192),
    Target(name="certificate", decode=_certificate, seeds=_certificate_seeds, refusals=(Unauthenticated,)),
    Target(name="csr", decode=_certificate_request, seeds=_request_seeds, refusals=(InvalidCertificateRequest,)),
    Target(
        name="renewal",
        decode=_renewal,
        seeds=_renewal_seeds,
        refusals=(Unauthenticated, InvalidCertificateRequest),
        max_len=1024,
    ),
    Target(name="join-string", decode=_join, seeds=_join_seeds),
    Target(
        name="enrollment-token",
        decode=_token,
        seeds=lambda: [encode_token(b"s" * 32).encode()],
        refusals=(InvalidEnrollmentToken,),
        max_len=128,
    ),
    Target(
        name="identity-uri",
        decode=_identity,
        seeds=lambda: [b"shovey://default/node/web-1", b"shovey://default/user/admin\nhttps://x"],
        refusals=(Unauthenticated,),
        max_len=512,
    ),
)
