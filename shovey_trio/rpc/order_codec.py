"""Reading an order's bytes on the node. Called only after the signature over these bytes was verified."""

from __future__ import annotations

import hashlib
import hmac

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from shovey_trio.core.jobs.command_input import NO_SECRETS, CommandInput, Secrets
from shovey_trio.core.trust.orders import Order, RefusalReason
from shovey_trio.rpc.convert import ORDER_KINDS, seconds
from shovey_trio.v1 import order_pb2

# Set aside in the contract; an order that carries one asks for something this agent would silently not do.
_UNSUPPORTED = ("file",)


def parse_order(raw: bytes, sealed: bytes = b"") -> Order | RefusalReason:
    """The order, or why this agent cannot act on it. Never raises for any bytes.

    Args:
        raw: the order's bytes, whose signature holds.
        sealed: the secrets that came beside them; without the right ones an order that has some is not believed.
    """
    message = order_pb2.Order()
    try:
        message.ParseFromString(raw)
    except DecodeError:
        return RefusalReason.MALFORMED
    if len(UnknownFieldSet(message)) or any(name in _present(message) for name in _UNSUPPORTED):
        return RefusalReason.UNSUPPORTED_FIELD
    kind = ORDER_KINDS.member(message.kind)
    if kind is None:
        return RefusalReason.UNSUPPORTED_KIND
    secrets = _open_secrets(message.sealed_digest, sealed)
    if isinstance(secrets, RefusalReason):
        return secrets
    return Order(
        organization=message.organization,
        node=message.node,
        agent_instance=message.agent_instance,
        job_id=message.job_id,
        run_id=message.run_id,
        kind=kind,
        command=message.command,
        run_timeout=message.run_timeout.seconds + message.run_timeout.nanos / 1e9,
        kill_grace=message.kill_grace.seconds + message.kill_grace.nanos / 1e9,
        issued_at=seconds(message.issued_at),
        expires_at=seconds(message.expires_at),
        nonce=message.nonce,
        epoch=message.epoch,
        input=CommandInput(
            args=dict(message.args),
            env=dict(message.env),
            stdin=message.stdin,
            user=message.user,
            secrets=secrets,
        ),
    )


def _open_secrets(digest: bytes, sealed: bytes) -> Secrets | RefusalReason:
    if not digest:
        return RefusalReason.MALFORMED if sealed else NO_SECRETS
    if not hmac.compare_digest(hashlib.sha256(sealed).digest(), digest):
        return RefusalReason.BAD_SIGNATURE
    message = order_pb2.OrderSecrets()
    try:
        message.ParseFromString(sealed)
    except DecodeError:
        return RefusalReason.MALFORMED
    if len(UnknownFieldSet(message)):
        return RefusalReason.UNSUPPORTED_FIELD
    return Secrets(env=dict(message.env), stdin=message.stdin)


def _present(message: order_pb2.Order) -> set[str]:
    return {field.name for field, _ in message.ListFields()}
