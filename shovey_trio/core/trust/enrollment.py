"""Enrolment tokens and join strings.

A token is 32 random bytes, written as base64url without padding (43 characters). The controller keeps its SHA-256 only:
whoever reads the store cannot enrol a node with what is in it, and 256 random bits need no slow hash.

A join string is everything a new node must know, in one line that survives a terminal, a chat and a shell::

    shovey-join-1.BASE64URL( checksum ‖ msgpack { o: organization, n: node, a: enroll address, c: CA DER, s: secret,
                                                  r: root public key } )

The root key (32 bytes, ``core.trust.key_sets``) came later: a line without one is still good, older agents ignore it.

The checksum is the first four bytes of the body's SHA-256. It finds a line that was cut or mistyped, before anybody
wonders why a certificate does not verify; it is no protection, and needs none: the string is a secret as a whole.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from shovey_trio.core.errors import InvalidEnrollmentToken, InvalidRequest
from shovey_trio.core.trust.key_sets import PUBLIC_KEY_BYTES

SECRET_BYTES: Final = 32
#: How long a token is good unless its maker says otherwise.
DEFAULT_TOKEN_LIFETIME: Final = 86_400.0
MAX_TOKEN_LIFETIME: Final = 30 * 86_400.0

_PREFIX: Final = "shovey-join-1."
_CHECKSUM_BYTES: Final = 4
# A CA certificate of ours has about 400 bytes; room for a chain of somebody else's.
_MAX_JOIN_CHARS: Final = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinTicket:
    """What a join string says.

    Attributes:
        organization: the node's organization.
        node: the name the node will have.
        enroll_address: ``host:port`` of the listener that serves Enroll.
        ca_certificate: DER; what that listener's certificate must chain to.
        secret: the token's 32 bytes; never shown in ``repr``.
        root_public_key: what the organization's key sets must be signed with; empty when the line does not say.
    """

    organization: str
    node: str
    enroll_address: str
    ca_certificate: bytes
    secret: bytes = field(repr=False)
    root_public_key: bytes = b""

    @property
    def token(self) -> str:
        """The token as EnrollRequest carries it."""
        return encode_token(self.secret)


def encode_token(secret: bytes) -> str:
    """A token's text.

    Raises:
        ValueError: ``secret`` has not 32 bytes (our own bug).
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a token has {SECRET_BYTES} random bytes")
    return urlsafe_b64encode(secret).rstrip(b"=").decode("ascii")


def token_digest(token: str) -> bytes:
    """What the store knows of a token: the SHA-256 of its 32 bytes.

    Raises:
        InvalidEnrollmentToken: it is not the text of a token.
    """
    try:
        secret = _from_base64(token)
    except ValueError:
        secret = b""
    # A second spelling of the same bytes would be harmless; it is refused so that a token has exactly one.
    if len(secret) != SECRET_BYTES or encode_token(secret) != token:
        raise InvalidEnrollmentToken("the enrolment token is not valid")
    return hashlib.sha256(secret).digest()


def same_digest(one: bytes, other: bytes) -> bool:
    """Compares two digests in a time that does not depend on where they differ."""
    return hmac.compare_digest(one, other)


def encode_join(ticket: JoinTicket) -> str:
    """The join string; ``decode_join`` is its inverse.

    Raises:
        ValueError: the secret or the root key has not 32 bytes (our own bug).
    """
    _check_sizes(ticket)
    body: bytes = msgpack.packb(
        {
            "o": ticket.organization,
            "n": ticket.node,
            "a": ticket.enroll_address,
            "c": ticket.ca_certificate,
            "s": ticket.secret,
            **({"r": ticket.root_public_key} if ticket.root_public_key else {}),
        }
    )
    return _PREFIX + urlsafe_b64encode(_checksum(body) + body).rstrip(b"=").decode("ascii")


def decode_join(text: str) -> JoinTicket:
    """Reads a join string; white space around it or from line breaks within it does no harm.

    Raises:
        InvalidRequest: it is no join string, of another version, or was cut or changed. The message never shows it.
    """
    text = "".join(text.split())
    if not text.startswith(_PREFIX):
        other = text.startswith("shovey-join-")
        raise _invalid("this join string is of another version" if other else "this is not a join string")
    if len(text) > _MAX_JOIN_CHARS:
        raise _invalid("this join string is too long")
    try:
        data = _from_base64(text.removeprefix(_PREFIX))
    except ValueError as exc:
        raise _invalid("this join string has characters that do not belong there") from exc
    checksum, body = data[:_CHECKSUM_BYTES], data[_CHECKSUM_BYTES:]
    if checksum != _checksum(body):
        raise _invalid("this join string is incomplete or was changed: copy the whole line")
    try:
        fields = msgpack.unpackb(body)
        ticket = JoinTicket(
            organization=_take(fields, "o", str),
            node=_take(fields, "n", str),
            enroll_address=_take(fields, "a", str),
            ca_certificate=_take(fields, "c", bytes),
            secret=_take(fields, "s", bytes),
            root_public_key=_take(fields, "r", bytes) if "r" in fields else b"",
        )
        _check_sizes(ticket)
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as exc:
        raise _invalid("this join string has not the right contents") from exc
    return ticket


def _check_sizes(ticket: JoinTicket) -> None:
    encode_token(ticket.secret)
    if len(ticket.root_public_key) not in (0, PUBLIC_KEY_BYTES):
        raise ValueError("root key")


def _take(fields: Any, key: str, kind: type[Any]) -> Any:
    value = fields[key]
    if not isinstance(value, kind) or not value:
        raise TypeError(key)
    return value


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:_CHECKSUM_BYTES]


def _from_base64(text: str) -> bytes:
    # urlsafe_b64decode skips what is not in its alphabet; encoding to ASCII and comparing the sets does not.
    if not text.isascii() or not text.replace("-", "").replace("_", "").isalnum():
        raise ValueError("not base64url")
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, field="join")
