"""A Chef server with organizations, as far as it is asked: what goiardi 0.11 from Debian does not have.

It verifies signatures like the real one (the path as it was on the wire, version 1.3, API version in the signed text),
answers ``principals`` and ``groups`` in the forms of API versions 0 and 1, keeps what it was asked, and can be made to
fail.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from starlette.requests import Request
from starlette.responses import Response

from lab.chef_client import public_pem
from shovey_trio.core.chef.signing import SignatureMalformed, SignatureRefused, read_signature, verify_signature
from shovey_trio.http.asgi import Receive, Scope, Send, read_body
from shovey_trio.http.messages import json_response
from shovey_trio.http.server import HttpOptions, HttpServer, open_http_server

from .conftest import key_of

ORGANIZATION = "acme"
_PREFIX = ["organizations", ORGANIZATION]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A user or client of the server."""

    kind: str
    name: str
    key: RSAPrivateKey
    org_member: bool = True

    @property
    def document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "type": self.kind,
            "public_key": public_pem(self.key),
            "authz_id": "0" * 32,
            "org_member": self.org_member,
        }


@dataclass(kw_only=True)
class ChefDouble:
    """The server; ``asked`` holds method and target of every request it took for signed."""

    asking: str = "shovey"
    members: Sequence[Member] = ()
    groups: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    fails_with: int | None = None
    api_version: int = 1
    server: HttpServer | None = None

    def settings(self, directory: Path) -> dict[str, object]:
        """How the shim is told of it."""
        assert self.server is not None
        file = directory / "shovey.pem"
        file.touch(mode=0o600)
        pem = key_of(self.asking).private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        file.write_bytes(pem)
        return {
            "server_url": f"http://127.0.0.1:{self.server.port}",
            "organization": ORGANIZATION,
            "client_name": self.asking,
            "key_file": file,
        }

    def asked_for(self, path: str) -> int:
        return self.asked.count(f"GET {path}")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._respond(Request(scope, receive, send))
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        body = await read_body(request, limit=10_000_000, within=10)
        if self.fails_with is not None:
            return json_response({"error": ["no"]}, status=self.fails_with)
        status = self._verify(request, body)
        if status != 200:
            return json_response({"error": ["Failed to authenticate."]}, status=status)
        path, query = request.scope["raw_path"].decode(), request.scope["query_string"].decode()
        self.asked.append(f"{request.method} {path}{'?' if query else ''}{query}")
        self.bodies.append(body)
        answer = self._answer(path)
        return json_response(answer or {"error": ["not found"]}, status=200 if answer else 404)

    def _verify(self, request: Request, body: bytes) -> int:
        try:
            signature = read_signature(request.headers, body, now=time.time(), clock_skew=900)
            keys = [key_of(self.asking)] if signature.user == self.asking else []
            keys += [member.key for member in self.members if member.name == signature.user]
            for key in keys:
                try:
                    verify_signature(
                        signature, method=request.method, path=request.scope["raw_path"].decode(), key=key.public_key()
                    )
                except SignatureRefused:
                    continue
                return 200
        except SignatureMalformed:
            return 400
        except SignatureRefused:
            pass
        return 401

    def _answer(self, path: str) -> Any:
        match path.split("/")[1:]:
            case [*prefix, "principals", name] if prefix == _PREFIX:
                found = [member.document for member in self.members if member.name == name]
                return found and (found[0] if self.api_version == 0 else {"principals": found})
            case [*prefix, "groups", name] if prefix == _PREFIX and name in self.groups:
                empty = {"actors": [], "users": [], "clients": [], "groups": []}
                return {**empty, "name": name, "groupname": name, "orgname": ORGANIZATION, **self.groups[name]}
            case [*prefix, "nodes"] if prefix == _PREFIX:
                return {"web-1": f"http://chef/organizations/{ORGANIZATION}/nodes/web-1"}
            case _:
                return None


@asynccontextmanager
async def open_chef_double(**fields: Any) -> AsyncIterator[ChefDouble]:
    """Serves one on a free port."""
    double = ChefDouble(**fields)
    async with open_http_server(double, address="127.0.0.1:0", options=HttpOptions()) as server:
        double.server = server
        yield double
