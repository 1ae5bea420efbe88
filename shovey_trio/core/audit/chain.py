"""Whether an audit log is what was written: the chain record by record, then the heads that were kept of it."""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterable, Mapping
from typing import Any

from shovey_trio.core.audit.records import GENESIS, AuditAction, AuditBroken, AuditHead, AuditRecord, record_hash


class ChainVerifier:
    """Fed with every record from the first kept one on, in order; holds the last head and what was expected, no more.

    Args:
        start: what the first record must follow: ``GENESIS``, or the checkpoint that pruning left.
        expected: heads that were kept elsewhere or signed; each must be met.
    """

    def __init__(self, start: AuditHead = GENESIS, expected: Iterable[AuditHead] = ()) -> None:
        self._start = start
        self.head = start
        self._expected = {(head.seq, head.hash) for head in expected}
        self._start_is_recorded = start.seq == 0

    def feed(self, record: AuditRecord) -> None:
        """Takes the next record.

        Raises:
            AuditBroken: it does not follow the one before, or is not what was written.
        """
        seq = self.head.seq + 1
        if record.seq != seq:
            raise _broken(seq, f"record {seq} is missing: {record.seq} stands in its place")
        if not hmac.compare_digest(record_hash(self.head.hash, record.body), record.hash):
            raise _broken(seq, f"record {seq} was changed, or the one before it was exchanged")
        said = _parse(record)
        if said.get("seq") != seq or said.get("at") != record.at or said.get("organization") != record.organization:
            raise _broken(seq, f"record {seq} is filed under another number, time or organization than it says")
        for head in [head for head in self._expected if head[0] == seq]:
            if not hmac.compare_digest(head[1], record.hash):
                raise _broken(seq, f"record {seq} is not the one whose head was kept: the log was written anew")
            self._expected.discard(head)
        if said.get("action") == AuditAction.AUDIT_PRUNED.value and self._names_start(said.get("detail")):
            self._start_is_recorded = True
        self.head = record.head

    def finish(self) -> AuditHead:
        """The last head, when everything that was expected was met.

        Raises:
            AuditBroken: the end is missing, or the beginning is and nobody has said so.
        """
        # A head at or before the checkpoint was pruned together with its record; the checkpoint stands for it.
        missed = sorted(head for head in self._expected if head[0] > self._start.seq)
        if missed:
            seq = missed[0][0]
            raise _broken(seq, f"record {seq} was written and is missing: the log ends at {self.head.seq}")
        kept = [head for head in self._expected if head[0] == self._start.seq and self._start.seq]
        if any(not hmac.compare_digest(head[1], self._start.hash) for head in kept):
            raise _broken(self._start.seq, f"the checkpoint at {self._start.seq} is not the head that was kept")
        if not self._start_is_recorded:
            raise _broken(
                self._start.seq, f"records up to {self._start.seq} are missing and no record says that they were pruned"
            )
        return self.head

    def _names_start(self, detail: Any) -> bool:
        return (
            isinstance(detail, Mapping)
            and detail.get("through") == self._start.seq
            and detail.get("hash") == self._start.hash.hex()
        )


def _parse(record: AuditRecord) -> Mapping[str, Any]:
    try:
        said = json.loads(record.body)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise _broken(record.seq, f"record {record.seq} is no record")
    return said


def _broken(seq: int, message: str) -> AuditBroken:
    return AuditBroken(message, seq=str(seq))
