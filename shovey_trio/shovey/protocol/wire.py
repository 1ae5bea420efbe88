"""Shovey as it is spoken over serf: signed orders, the heartbeat, and the text they are made of.

The rules of this file (recorded in ``tests/golden/serf.jsonl``; the protocol is goiardi's and schob's, not ours):

* A payload is one JSON object with text values only, keys sorted, in Go's escaping: ``<``, ``>`` and ``&`` as
  \\u003c …, everything else that is not ASCII as it is. schob refuses a value of any other type.
* Signed is every key but ``signature``, sorted, as ``key: value`` lines without a last line end, with the values as
  they are, not as JSON writes them. So a line end in a value looks like another key in the text; both sides read the
  JSON, and keys that are added or dropped change the text, so nothing comes of it.
* RSASSA-PKCS1-v1_5 with SHA-1, standard base64 in one line. There is no nonce and no list of nodes in the text: a node
  must refuse what it has seen before by itself (``replay_key``).
* What an order calls ``run_id`` is the job's id: one payload, and one signature, serve every node of a job.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from enum import StrEnum
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

#: The query that carries an order.
ORDER_QUERY: Final = "shovey"
#: The query by which a schob says every 30 s that it is there.
STATUS_QUERY: Final = "node_status"
#: User event an old schob sends at its start; the payload is its node name.
START_EVENT: Final = "goiardi-join"
#: What a schob is answered; it waits for nothing else.
STATUS_OK: Final = b'{"response":"ok"}'
STATUS_UP: Final = "up"
HEARTBEAT_INTERVAL: Final = 30.0
#: How far the clocks of server and node may differ, unless the node is told otherwise; also how long an order is good.
DEFAULT_TIME_SLEW: Final = 900.0

_SIGNATURE: Final = "signature"
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)", re.ASCII)
# More than any query that serf carries.
_MAX_PAYLOAD: Final = 65_536


class Action(StrEnum):
    """What an order asks for."""

    START = "start"
    CANCEL = "cancel"


class PayloadMalformed(ValueError):
    """Somebody sent something under a name of the protocol that is not of the protocol."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShoveyOrder:
    """A received order. Nothing in it can be believed before ``verify_order``.

    Attributes:
        run_id: the job's id.
        command: empty for a cancel.
        timeout: whole seconds the command may run, at least 1; None for a cancel.
        time: as written; ``issued_at`` is the same in unix seconds.
    """

    action: Action
    run_id: str
    command: str
    timeout: int | None
    time: str
    issued_at: float
    signature: bytes
    signed_text: bytes

    @property
    def replay_key(self) -> bytes:
        """The same for two copies of one order, and for nothing else."""
        return "\n".join((self.run_id, self.action, self.time)).encode()


# --- orders, the sending side ---------------------------------------------------------------------------------


def start_fields(*, job_id: str, command: str, run_timeout: float, time: str) -> dict[str, str]:
    """What a start order says; the timeout is rounded up to whole seconds, because 0 ends a command at once."""
    return {
        "action": Action.START.value,
        "command": command,
        "run_id": job_id,
        "time": time,
        "timeout": str(max(1, -int(-run_timeout // 1))),
    }


def cancel_fields(*, job_id: str, time: str) -> dict[str, str]:
    """What a cancel order says."""
    return {"action": Action.CANCEL.value, "run_id": job_id, "time": time}


def sign_payload(fields: Mapping[str, str], key: RSAPrivateKey) -> bytes:
    """The payload of an order: the fields with their signature."""
    signature = key.sign(signed_text(fields), PKCS1v15(), hashes.SHA1())  # noqa: S303 - the protocol's
    return go_json({**fields, _SIGNATURE: base64.b64encode(signature).decode("ascii")}, sort_keys=True)


def signed_text(fields: Mapping[str, str]) -> bytes:
    """The text that a signature covers."""
    lines = (f"{key}: {value}" for key, value in sorted(fields.items()) if key != _SIGNATURE)
    return "\n".join(lines).encode()


def format_time(at: float, *, utc_offset: float) -> str:
    """RFC 3339 in whole seconds, in the local time that ``utc_offset`` (seconds east) is of."""
    text = datetime.fromtimestamp(int(at), timezone(timedelta(seconds=utc_offset))).isoformat(timespec="seconds")
    return text.removesuffix("+00:00") + "Z" if text.endswith("+00:00") else text


# --- orders, the receiving side -------------------------------------------------------------------------------


def parse_order(payload: bytes) -> ShoveyOrder:
    """Reads an order; says nothing about whether it is genuine.

    Raises:
        PayloadMalformed: not an object of texts, an unknown action, or a field that it needs is missing or senseless.
    """
    fields = _texts(payload)
    try:
        action = Action(fields.get("action", ""))
    except ValueError:
        raise PayloadMalformed(f"unknown action {fields.get('action', '')[:40]!r}") from None
    run_id, time = fields.get("run_id", ""), fields.get("time", "")
    if not run_id:
        raise PayloadMalformed("no run_id")
    if action is Action.START and "command" not in fields:
        raise PayloadMalformed("no command")
    try:
        signature = base64.b64decode(fields.get(_SIGNATURE, ""), validate=True)
    except (binascii.Error, ValueError):
        raise PayloadMalformed("the signature is not base64") from None
    return ShoveyOrder(
        action=action,
        run_id=run_id,
        command=fields.get("command", ""),
        timeout=_whole_seconds(fields.get("timeout", "")) if action is Action.START else None,
        time=time,
        issued_at=parse_time(time),
        signature=signature,
        signed_text=signed_text(fields),
    )


def verify_order(order: ShoveyOrder, key: RSAPublicKey) -> bool:
    """Whether the holder of ``key`` signed this order."""
    try:
        key.verify(order.signature, order.signed_text, PKCS1v15(), hashes.SHA1())  # noqa: S303 - the protocol's
    except InvalidSignature:
        return False
    return True


def parse_time(text: str) -> float:
    """Unix seconds of an RFC 3339 time.

    Raises:
        PayloadMalformed: it is none.
    """
    if _TIME.fullmatch(text) is None:
        raise PayloadMalformed(f"not a time: {text[:40]!r}")
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise PayloadMalformed(f"not a time: {text[:40]!r}") from None


# --- heartbeat ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatusSaid:
    """A heartbeat: what somebody says of a node. Serf does not tell who."""

    node: str
    status: str


def status_payload(node: str, status: str = STATUS_UP) -> bytes:
    """A heartbeat's payload."""
    return go_json({"node": node, "status": status}, sort_keys=True)


def parse_status(payload: bytes) -> NodeStatusSaid:
    """Reads a heartbeat.

    Raises:
        PayloadMalformed: it is none.
    """
    fields = _texts(payload)
    if not fields.get("node") or not fields.get("status"):
        raise PayloadMalformed("a heartbeat names a node and a status")
    return NodeStatusSaid(node=fields["node"], status=fields["status"])


# --- JSON as Go writes it -------------------------------------------------------------------------------------

# What encoding/json escapes besides quotes, backslashes and control characters.
_GO_ESCAPES: Final = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def go_json(value: Mapping[str, Any], *, sort_keys: bool = False) -> bytes:
    """JSON byte for byte as goiardi and schob write it.

    A byte that is no UTF-8 (a lone surrogate in the text) goes out as ``\\udcXX``: Go reads U+FFFD, which is what it
    would have sent itself, and we read the byte.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=sort_keys).translate(_GO_ESCAPES)
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode()


def _texts(payload: bytes) -> dict[str, str]:
    if len(payload) > _MAX_PAYLOAD:
        raise PayloadMalformed("too large")
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        raise PayloadMalformed("not JSON") from None
    if not isinstance(document, dict) or not all(isinstance(value, str) for value in document.values()):
        raise PayloadMalformed("not an object of texts")
    # As Go reads it: half a surrogate pair is no character.
    return {_SURROGATE.sub("\ufffd", key): _SURROGATE.sub("\ufffd", value) for key, value in document.items()}


def _whole_seconds(text: str) -> int:
    """goiardi sends 0 and less for a timeout it did not understand, and schob then ends the command at once."""
    if not re.fullmatch(r"-?\d{1,9}", text, re.ASCII):
        raise PayloadMalformed(f"not a timeout: {text[:40]!r}")
    return max(1, int(text))
