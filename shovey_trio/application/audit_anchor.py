"""Signs the head of the audit log now and then, so that an end that is cut off is found.

Before it signs, it checks that what was added follows the head it signed before: a log that somebody has written anew
under a running controller is never signed, it is reported.
"""

from __future__ import annotations

from typing import Final, Protocol

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shovey_trio.core.audit.chain import ChainVerifier
from shovey_trio.core.audit.head import SignedHead, sign_head
from shovey_trio.core.audit.records import AuditBroken, AuditHead
from shovey_trio.core.errors import ShoveyError
from shovey_trio.nursery.ports import Clock
from shovey_trio.store.contract import AuditStore

_log = structlog.get_logger(__name__)

EVERY: Final = 60.0
# Records read at a time: some 500 bytes each.
PAGE: Final = 500


class HeadFile(Protocol):
    """Where the newest signed head is kept; methods block."""

    def ensure_key(self) -> Ed25519PrivateKey:
        """See ``identity.audit_files.AuditFiles``."""
        ...

    def read_head(self) -> SignedHead | None:
        """See ``identity.audit_files.AuditFiles``."""
        ...

    def write_head(self, signed: SignedHead) -> None:
        """See ``identity.audit_files.AuditFiles``."""
        ...


class AuditAnchor:
    """Made by ``open_anchor``."""

    def __init__(
        self,
        *,
        store: AuditStore,
        file: HeadFile,
        clock: Clock,
        key: Ed25519PrivateKey,
        signed: SignedHead | None,
        broken: str = "",
    ) -> None:
        self._store = store
        self._file = file
        self._clock = clock
        self._key = key
        self._signed = signed
        self.broken = broken
        # The head on disk does not hold: it is evidence, and stays until somebody has looked at it.
        self._refuses = bool(broken)

    async def serve(self) -> None:
        """Signs a head a minute while there is something new, until cancelled."""
        while True:
            await self.sign()
            await trio.sleep(EVERY)

    async def sign(self) -> None:
        """Signs the present head, if what was added follows the one signed before; otherwise says what is wrong."""
        if self._refuses:
            return
        try:
            await self._sign()
        except AuditBroken as error:
            if self.broken != error.message:
                _log.critical("audit.broken", error=error.message)
            self.broken = error.message
        except (ShoveyError, OSError) as error:
            _log.warning("audit.not_signed", error=str(error))

    async def _sign(self) -> None:
        head = await self._store.audit_head()
        before = self._signed.head if self._signed is not None else None
        if head == before or head.seq == 0:
            return
        await self._check(before, head)
        signed = sign_head(head, self._clock.now(), self._key)
        await trio.to_thread.run_sync(self._file.write_head, signed)
        self._signed, self.broken = signed, ""
        # Also for whoever ships the journal elsewhere: a head that nobody here can take back.
        _log.info("audit.head", head=str(head))

    async def _check(self, before: AuditHead | None, head: AuditHead) -> None:
        start = await self._store.audit_start()
        if before is not None and head.seq <= before.seq:
            raise AuditBroken(f"the audit log ends at {head.seq}; {before.seq} was signed", seq=str(head.seq))
        # What pruning took since then was checked when it was signed, or is vouched for by the checkpoint.
        verifier = ChainVerifier(start if before is None or before.seq < start.seq else before)
        while verifier.head.seq < head.seq:
            records = await self._store.read_audit(after_seq=verifier.head.seq, limit=PAGE)
            for record in records:
                if record.seq <= head.seq:
                    verifier.feed(record)
            if not records:
                raise AuditBroken(f"record {verifier.head.seq + 1} is missing", seq=str(verifier.head.seq + 1))
        if verifier.head != head:
            raise AuditBroken(f"record {head.seq} was exchanged while it was read", seq=str(head.seq))


async def open_anchor(*, store: AuditStore, file: HeadFile, clock: Clock) -> AuditAnchor:
    """An anchor that goes on from the head that was signed last.

    A head that does not hold, or that the log does not reach, is reported and never signed over.

    Raises:
        InsecureFile, FileUnusable: the key cannot be used.
        OSError: it cannot be made.
    """
    key = await trio.to_thread.run_sync(file.ensure_key)
    signed: SignedHead | None = None
    broken = ""
    try:
        signed = await trio.to_thread.run_sync(file.read_head)
    except AuditBroken as error:
        broken = error.message
        _log.critical("audit.broken", error=broken)
    return AuditAnchor(store=store, file=file, clock=clock, key=key, signed=signed, broken=broken)
