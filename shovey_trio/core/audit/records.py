"""The audit log's records and their chain (docs/security.md, "The audit log").

A record's bytes are its JSON in one fixed form: keys sorted, no white space, ASCII. Its hash is SHA-256 over a domain
string, the hash of the record before it, and these bytes; so a record that is changed, taken out, put in or moved
breaks the chain at its place, and everything up to a head that somebody has kept can only be as it was.

An ``AuditEntry`` is what happened; it becomes an ``AuditRecord`` when the store gives it its place, in the commit of
what it records.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from shovey_trio.core.errors import Code, Exit, InvalidRequest, ShoveyError

CHAIN_DOMAIN: Final = b"shovey-trio/audit/1\x00"
HASH_BYTES: Final = 32
# Characters of one word of a record, and of its details together: a record stays far below 16 KiB.
MAX_WORD: Final = 512
MAX_DETAIL: Final = 8 * 1024


#: The one form of a record's JSON.
canonical_json: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


class AuditBroken(ShoveyError):
    """The audit log is not what was written; ``seq`` names the first record that does not hold."""

    reason, code, http, exit = "AUDIT_BROKEN", Code.DATA_LOSS, 500, Exit.INTERNAL


class AuditAction(StrEnum):
    """What was done, asked for, or refused; names of published records never change."""

    JOB_STARTED = "job.started"
    JOB_CANCELLED = "job.cancelled"
    JOB_ENDED = "job.ended"
    CALL_REFUSED = "call.refused"
    CALLS = "calls"
    AUTHENTICATION_FAILED = "authentication.failed"
    ORDER_REFUSED = "order.refused"
    FOREIGN_RUN = "run.foreign"
    NODE_ENROLLED = "node.enrolled"
    CERTIFICATE_RENEWED = "certificate.renewed"
    NODE_REMOVED = "node.removed"
    NODE_ADDED = "node.added"
    ENROLLMENT_OPENED = "enrollment.opened"
    USER_CERTIFIED = "user.certified"
    USER_MADE = "user.made"
    USER_REMOVED = "user.removed"
    IMPORTED = "directory.imported"
    ORGANIZATION_MADE = "organization.made"
    ORGANIZATION_REMOVED = "organization.removed"
    CHEF_KEY_SET = "chef_key.set"
    CHEF_KEY_REMOVED = "chef_key.removed"
    GRANT_GIVEN = "grant.given"
    GRANT_REVOKED = "grant.revoked"
    CERTIFICATES_REVOKED = "certificates.revoked"
    KEYS_CHANGED = "keys.changed"
    CONTROLLER_STARTED = "controller.started"
    AUDIT_PRUNED = "audit.pruned"
    STORE_RESTORED = "store.restored"


class AuditOutcome(StrEnum):
    """How it went."""

    ALLOWED = "allowed"
    REFUSED = "refused"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """What happened, before it has its place in the chain.

    Attributes:
        action: an ``AuditAction``, or what a wing calls an action of its own.
        principal: who asked, such as ``user/ada``; ``host/NAME`` for a command on the controller's host; empty for
            nobody who proved it.
        method: gRPC path, ``METHOD /route`` of REST, or the command's words.
        peer: address it came from, without the port.
        rule: what allowed or refused it.
        subject: what it is about, such as ``job/ID``.
        detail: JSON values; never a secret.
    """

    at: float
    organization: str
    action: str
    outcome: AuditOutcome
    principal: str = ""
    method: str = ""
    peer: str = ""
    rule: str = ""
    subject: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditHead:
    """A place in the chain: the number and the hash of its record; 0 and zeros before the first."""

    seq: int
    hash: bytes

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash.hex()}"


GENESIS: Final = AuditHead(seq=0, hash=bytes(HASH_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """A record in its place.

    Attributes:
        body: the bytes that are hashed, as text.
        hash: of this record, the one before included.
    """

    seq: int
    at: float
    organization: str
    body: str
    hash: bytes

    @property
    def head(self) -> AuditHead:
        return AuditHead(seq=self.seq, hash=self.hash)


def chain_record(before: AuditHead, entry: AuditEntry) -> AuditRecord:
    """The record of an entry that follows ``before``."""
    seq = before.seq + 1
    fields = {
        "seq": seq,
        "at": entry.at,
        "organization": entry.organization,
        "action": entry.action,
        "outcome": entry.outcome,
        "principal": entry.principal[:MAX_WORD],
        "method": entry.method[:MAX_WORD],
        "peer": entry.peer[:MAX_WORD],
        "rule": entry.rule[:MAX_WORD],
        "subject": entry.subject[:MAX_WORD],
        "detail": entry.detail,
    }
    body = canonical_json(fields)
    if len(body) > MAX_DETAIL:
        body = canonical_json({**fields, "detail": _bounded(entry.detail)})
    return AuditRecord(
        seq=seq, at=entry.at, organization=entry.organization, body=body, hash=record_hash(before.hash, body)
    )


def record_hash(previous: bytes, body: str) -> bytes:
    """The hash of a record with this body after one with that hash."""
    return hashlib.sha256(CHAIN_DOMAIN + previous + body.encode("utf-8")).digest()


def parse_head(text: str) -> AuditHead:
    """A head as ``str`` writes it: ``SEQ:HASH``.

    Raises:
        InvalidRequest: it is none.
    """
    number, _, digest = text.strip().partition(":")
    try:
        head = AuditHead(seq=int(number), hash=bytes.fromhex(digest))
    except ValueError:
        head = GENESIS
    if head.seq < 1 or len(head.hash) != HASH_BYTES or str(head) != text.strip().lower():
        raise InvalidRequest("a head is a record's number, a colon and 64 hexadecimal digits", field="head")
    return head


def _bounded(detail: Mapping[str, Any]) -> Mapping[str, Any]:
    """Details that fit; of those that do not, their digest and their names."""
    text = canonical_json(detail)
    if len(text) <= MAX_DETAIL:
        return detail
    digest = hashlib.sha256(text.encode("ascii")).hexdigest()
    return {"too_long": len(text), "sha256": digest, "fields": sorted(detail)[:50]}
