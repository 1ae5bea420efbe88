"""What is kept beside a store, in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shovey_trio.core.audit.head import SignedHead
from shovey_trio.core.audit.records import AuditBroken
from shovey_trio.core.trust.rights import Rights


@dataclass
class KeptHeads:
    """See ``application.audit_anchor.HeadFile``; ``damaged`` files do not hold."""

    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    head: SignedHead | None = None
    damaged: bool = False
    rights: Rights | None = None
    damaged_rights: bool = False
    rights_written: int = 0

    def ensure_key(self) -> Ed25519PrivateKey:
        return self.key

    def read_head(self) -> SignedHead | None:
        if self.damaged:
            raise AuditBroken("the signed head was changed")
        return self.head

    def write_head(self, signed: SignedHead) -> None:
        self.head = signed

    def read_rights(self) -> Rights | None:
        if self.damaged_rights:
            raise AuditBroken("the kept rights were changed")
        return self.rights

    def write_rights(self, rights: Rights) -> None:
        self.rights = rights
        self.rights_written += 1
