"""Who may call the REST shim: names with Chef public keys."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from shovey_trio.core.jobs.model import Principal, Role


class ChefPrincipalKind(StrEnum):
    """Users and nodes have name spaces of their own, as in Chef, though a request says only a name."""

    USER = "user"
    NODE = "node"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChefPrincipal:
    """A user or node that signs its requests with a Chef key.

    Attributes:
        role: ``Role.NODE`` for nodes, and for nobody else.
        public_key: PEM of its RSA public keys, one behind the other (``core.chef.keys``); any of them may have signed.
    """

    organization: str
    kind: ChefPrincipalKind
    name: str
    role: Role
    public_key: str
    created_at: float

    @property
    def principal(self) -> Principal:
        """The same as the rest of the program knows it."""
        return Principal(organization=self.organization, role=self.role, name=self.name)
