"""goiardi's export file (``goiardi -x FILE``): the part of it that says who there is.

Format 1.1, as goiardi 0.11.10 writes it: ``{"MajorVersion": 1, "MinorVersion": 1, "Data": {"client": […], "user": […],
"node": […], …}}``. Jobs, cookbooks and everything else in it are goiardi's and stay there.

Of a node's record is kept what ``core.jobs.search`` knows how to ask for: its Chef tags, its environment and its roles,
as tags of ours. Attributes stay behind.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from shovey_trio.core.chef.principals import ChefPrincipal, ChefPrincipalKind
from shovey_trio.core.chef.signing import load_public_key
from shovey_trio.core.errors import InvalidRequest
from shovey_trio.core.jobs.model import Role
from shovey_trio.core.jobs.search import ROLE_SEPARATOR

_FORMAT: Final = 1
# About what an agent of ours may say of itself; what is longer or beyond that is left out.
_MAX_TAGS: Final = 64
_MAX_TAG: Final = 256
_MAX_VALUE: Final = 4_096
_ROLE: Final = re.compile(r"role\[([^\[\]]+)\]")
# Signs for whoever uses goiardi's web interface, of which there is none here.
_WEB_INTERFACE: Final = "chef-webui"


@dataclass(frozen=True, slots=True, kw_only=True)
class GoiardiExport:
    """Who was found.

    Attributes:
        nodes: the nodes' tags by name, sorted.
        skipped: who was left out, and why.
    """

    principals: tuple[ChefPrincipal, ...]
    nodes: Mapping[str, Mapping[str, str]]
    skipped: tuple[tuple[str, str], ...]


def read_export(document: object, *, organization: str, now: float) -> GoiardiExport:
    """Users and nodes of an export.

    Admins, people or programs, are admins here. Other clients are nodes. Other users may do nothing through the shim,
    as with goiardi, until they are given a role.

    Raises:
        InvalidRequest: it is not an export, or of a later format.
    """
    if not isinstance(document, dict) or not isinstance(document.get("Data"), dict):
        raise InvalidRequest("this is not an export of goiardi")
    if document.get("MajorVersion") != _FORMAT:
        raise InvalidRequest(f"this export has format {document.get('MajorVersion')!r}; only {_FORMAT} is known")
    data: Mapping[str, Any] = document["Data"]
    principals: list[ChefPrincipal] = []
    skipped: list[tuple[str, str]] = []
    for kind, entry in _entries(data):
        name = entry.get("name")
        if not isinstance(name, str) or not name:
            skipped.append(("?", "it has no name"))
        elif entry.get("validator"):
            skipped.append((name, "a validator only makes clients"))
        elif kind == "client" and name == _WEB_INTERFACE:
            skipped.append((name, "there is no web interface to sign for users"))
        else:
            try:
                load_public_key(str(entry.get("public_key", "")))
            except InvalidRequest as error:
                skipped.append((name, error.message))
                continue
            principals.append(_principal(kind, name, entry, organization, now))
    nodes = {entry["name"]: _tags(entry) for entry in _list(data, "node") if isinstance(entry.get("name"), str)}
    return GoiardiExport(
        principals=tuple(principals), nodes={name: nodes[name] for name in sorted(nodes)}, skipped=tuple(skipped)
    )


def _principal(kind: str, name: str, entry: Mapping[str, Any], organization: str, now: float) -> ChefPrincipal:
    admin = bool(entry.get("admin"))
    is_node = kind == "client" and not admin
    return ChefPrincipal(
        organization=organization,
        kind=ChefPrincipalKind.NODE if is_node else ChefPrincipalKind.USER,
        name=name,
        role=Role.NODE if is_node else Role.ADMIN if admin else Role.VIEWER,
        public_key=str(entry["public_key"]),
        created_at=now,
    )


def _tags(entry: Mapping[str, Any]) -> dict[str, str]:
    """What can be searched for of a node's record: ``chef_environment``, ``roles``, and a tag for each of its tags."""
    # What the run list names itself, and what chef-client last made of it.
    run_list = [match[1] for item in _texts(entry, "run_list") if (match := _ROLE.fullmatch(item))]
    roles = sorted({*run_list, *_texts(entry.get("automatic"), "roles")})
    found = dict.fromkeys(_texts(entry.get("normal"), "tags"), "")
    found |= {"roles": ROLE_SEPARATOR.join(roles)} if roles else {}
    environment = entry.get("chef_environment")
    found |= {"chef_environment": environment} if isinstance(environment, str) and environment else {}
    fitting = [(key, value) for key, value in found.items() if _fits(key) and len(value) <= _MAX_VALUE]
    return dict(fitting[-_MAX_TAGS:])


def _fits(tag: str) -> bool:
    return 0 < len(tag) <= _MAX_TAG and tag.isprintable()


def _texts(entry: object, name: str) -> list[str]:
    values = entry.get(name) if isinstance(entry, dict) else None
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []


def _entries(data: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    # Users last: where an admin client and a user have one name, the user's key counts.
    for kind in ("client", "user"):
        for entry in _list(data, kind):
            yield kind, entry


def _list(data: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    entries = data.get(name) or []
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
