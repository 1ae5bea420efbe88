"""Signs the head of the audit log now and then, so that an end that is cut off is found, or an old copy of the store.

Before it signs, it checks that what was added follows the head it signed before: a log that somebody has written anew
under a running controller is never signed, it is reported. Beside the head it keeps who may do what, so that what was
taken from somebody stays taken when an older copy is put back.
"""

from __future__ import annotations

from typing import Final, Protocol

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shovey_trio.core.audit.chain import ChainVerifier
from shovey_trio.core.audit.head import SignedHead, sign_head
from shovey_trio.core.audit.records import AuditBroken, AuditHead, AuditRecord
from shovey_trio.core.errors import ShoveyError
from shovey_trio.core.trust.rights import Rights
from shovey_trio.nursery.ports import Clock
from shovey_trio.observe.threads import run_in_thread
from shovey_trio.store.contract import RestorableStore

_log = structlog.get_logger(__name__)

# Seconds between two heads: what an older copy of the store may lack without being noticed.
EVERY: Final = 5.0
# Seconds between two heads that are told to the log.
TOLD_EVERY: Final = 60.0
# Records read at a time: some 500 bytes each.
PAGE: Final = 500
# Records of what changes nobody's rights; the form of a record begins with its action.
_NO_RIGHTS: Final = tuple(
    f'{{"action":"{word}'
    for word in (
        "audit.",
        "authentication.",
        "call",
        "certificate.",
        "controller.",
        "enrollment.",
        "job.",
        "keys.",
        "order.",
        "run.",
    )
)


class HeadFile(Protocol):
    """Where the newest signed head is kept, and who may do what; methods block."""

    def ensure_key(self) -> Ed25519PrivateKey:
        """See ``identity.audit_files.AuditFiles``."""
        ...

    def read_head(self) -> SignedHead | None:
        """See ``identity.audit_files.AuditFiles``."""
        ...

    def write_head(self, signed: SignedHead) -> None:
        """See ``identity.audit_files.AuditFiles``."""
        ...

    def read_rights(self) -> Rights | None:
        """See ``identity.audit_files.AuditFiles``."""
        ...

    def write_rights(self, rights: Rights) -> None:
        """See ``identity.audit_files.AuditFiles``."""
        ...


class AuditAnchor:
    """Made by ``open_anchor``."""

    def __init__(
        self,
        *,
        store: RestorableStore,
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
        # A change of rights may be several commits: they are kept now, and once more the next time.
        self._keep_rights = 2
        self._told_at = 0.0

    async def serve(self) -> None:
        """Signs a head every few seconds while there is something new, until cancelled."""
        while True:
            await self.sign()
            await trio.sleep(EVERY)

    async def sign(self) -> None:
        """Signs the present head, if what was added follows the one signed before; otherwise says what is wrong."""
        try:
            signed = await self.sign_or_raise()
        except AuditBroken as error:
            if self.broken != error.message:
                _log.critical("audit.broken", error=error.message)
            self.broken = error.message
        except (ShoveyError, OSError) as error:
            _log.warning("audit.not_signed", error=str(error))
        else:
            self.broken = ""
            if signed is not None and not 0 <= signed.at - self._told_at < TOLD_EVERY:
                # Also for whoever ships the journal elsewhere: a head that nobody here can take back.
                _log.info("audit.head", head=str(signed.head))
                self._told_at = signed.at

    async def sign_or_raise(self) -> SignedHead | None:
        """As ``sign``; returns the head if there was something new to sign.

        Raises:
            AuditBroken: what was added does not follow the head that was signed before, or that does not hold.
            StoreUnavailable, OSError: it cannot be read or written now.
        """
        if self._refuses:
            raise AuditBroken(self.broken)
        head = await self._store.audit_head()
        before = self._signed.head if self._signed is not None else None
        if head != before and head.seq:
            await self._check(before, head)
        if self._keep_rights:
            await run_in_thread(self._file.write_rights, await self._store.read_rights())
            self._keep_rights -= 1
        if head == before or head.seq == 0:
            return None
        signed = sign_head(head, self._clock.now(), self._key)
        await run_in_thread(self._file.write_head, signed)
        self._signed = signed
        return signed

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
                    self._keep_rights = 2 if _changes_rights(record) else self._keep_rights
            if not records:
                raise AuditBroken(f"record {verifier.head.seq + 1} is missing", seq=str(verifier.head.seq + 1))
        if verifier.head != head:
            raise AuditBroken(f"record {head.seq} was exchanged while it was read", seq=str(head.seq))


def _changes_rights(record: AuditRecord) -> bool:
    return not record.body.startswith(_NO_RIGHTS)


async def open_anchor(*, store: RestorableStore, file: HeadFile, clock: Clock, anew: bool = False) -> AuditAnchor:
    """An anchor that goes on from the head that was signed last.

    A head that does not hold, or that the log does not reach, is reported and never signed over; ``anew`` begins
    without it.

    Raises:
        InsecureFile, FileUnusable: the key cannot be used.
        OSError: it cannot be made.
    """
    key = await run_in_thread(file.ensure_key)
    signed: SignedHead | None = None
    broken = ""
    try:
        signed = None if anew else await run_in_thread(file.read_head)
    except AuditBroken as error:
        broken = error.message
        _log.critical("audit.broken", error=broken)
    return AuditAnchor(store=store, file=file, clock=clock, key=key, signed=signed, broken=broken)
