"""Names of principals and the URI that carries one in a certificate: ``shovey://ORG/node/NAME``, ``shovey://ORG/user/NAME``.

Whatever is allowed in a name is allowed literally in a URI's path (RFC 3986 section 3.3), in a serf node name beside
``ORG:``, and as one component of a file name. Nothing is escaped anywhere, so that two spellings of one name cannot
exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from shovey_trio.core.errors import InvalidRequest, Unauthenticated

_SCHEME: Final = "shovey://"
# A serf name is limited to 128 bytes by memberlist's default; what fits a query beside a payload is less and depends on
# the payload, so ``doctor`` checks that separately.
MAX_NAME: Final = 128
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:-]{0,127}")
# Chef's organizations, which old clients put into URLs: lower case; no colon, because it ends the name in serf.
_ORGANIZATION: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class PrincipalKind(StrEnum):
    """What a certificate was issued for. A user's role is not in the certificate: it is looked up at each call."""

    NODE = "node"
    USER = "user"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a certificate says its holder is."""

    organization: str
    kind: PrincipalKind
    name: str

    @property
    def uri(self) -> str:
        return f"{_SCHEME}{self.organization}/{self.kind}/{self.name}"

    @property
    def label(self) -> str:
        """As stored and shown, such as ``node/web-1``."""
        return f"{self.kind}/{self.name}"


def node_identity(organization: str, name: str) -> Identity:
    """The identity of a node.

    Raises:
        InvalidRequest: a name has characters that names do not have; ``field`` says which.
    """
    return Identity(
        organization=check_organization(organization), kind=PrincipalKind.NODE, name=check_name(name, "node")
    )


def user_identity(organization: str, name: str) -> Identity:
    """The identity of a user; raises as ``node_identity``."""
    return Identity(
        organization=check_organization(organization), kind=PrincipalKind.USER, name=check_name(name, "user")
    )


def parse_identity(uris: Iterable[str]) -> Identity:
    """The one identity among the URIs of a certificate that TLS has verified; other schemes are ignored.

    Raises:
        Unauthenticated: none, more than one, or one that is not of this form.
    """
    ours = [uri for uri in uris if uri[: len(_SCHEME)].lower() == _SCHEME]
    if len(ours) != 1:
        raise Unauthenticated(
            "the certificate names no shovey identity" if not ours else "the certificate names several identities"
        )
    match ours[0].removeprefix(_SCHEME).split("/"):
        case [organization, ("node" | "user") as kind, name] if _ORGANIZATION.fullmatch(
            organization
        ) and _NAME.fullmatch(name):
            return Identity(organization=organization, kind=PrincipalKind(kind), name=name)
        case _:
            raise Unauthenticated("the certificate's shovey identity is malformed")


def check_name(name: str, field: str) -> str:
    """Returns a node's or user's name.

    Raises:
        InvalidRequest: it is not 1 to 128 of the permitted characters.
    """
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{field} name {name[:MAX_NAME]!r}: expected 1 to {MAX_NAME} letters, digits or . _ : - and no . : or - at "
            "its start",
            field=field,
        )
    return name


def check_organization(name: str) -> str:
    """Returns an organization's name.

    Raises:
        InvalidRequest: it is not 1 to 64 lower-case letters, digits, ``_`` or ``-``.
    """
    if not _ORGANIZATION.fullmatch(name):
        raise InvalidRequest(
            f"organization {name[:MAX_NAME]!r}: expected 1 to 64 lower-case letters, digits, _ or - and neither "
            "_ nor - at its start",
            field="organization",
        )
    return name
