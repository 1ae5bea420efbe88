"""An HTTP client that signs as knife and schob do, and shows exactly what came back; one connection per request."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import h11
import trio
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shovey_trio.core.chef.signing import SigningVersion, sign_request

_READ: Final = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A response; headers by lower-case name."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The text of an error."""
        (text,) = self.json["error"]
        return str(text)


class ConnectionDropped(Exception):
    """The server closed the connection without a whole answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChefClient:
    """Somebody with a Chef key.

    Attributes:
        key: None sends requests unsigned.
        now: what time it is for this client.
    """

    port: int
    user: str
    key: RSAPrivateKey | None
    version: SigningVersion = SigningVersion.V1_1
    now: Callable[[], float] = time.time
    headers: Mapping[str, str] = field(default_factory=dict)

    async def get(self, path: str) -> Answer:
        return await self.request("GET", path)

    async def post(self, path: str, body: object) -> Answer:
        return await self.request("POST", path, body)

    async def put(self, path: str, body: object) -> Answer:
        return await self.request("PUT", path, body)

    async def request(
        self, method: str, path: str, body: object = None, *, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Signs and sends a request; ``body`` is JSON, unless it is bytes."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        return await self.send(method, path, data, self.sign(method, path, data) | dict(headers or {}))

    def sign(self, method: str, path: str, body: bytes) -> dict[str, str]:
        """The headers of a request."""
        plain = {"Accept": "application/json", "X-Chef-Version": "16.18.43", "X-Ops-Server-Api-Version": "2"}
        if body:
            plain["Content-Type"] = "application/json"
        if self.key is None:
            return plain | dict(self.headers)
        signed = sign_request(
            method=method,
            path=path,
            body=body,
            user=self.user,
            now=self.now(),
            key=self.key,
            version=self.version,
            server_api_version="2",
        )
        return plain | signed | dict(self.headers)

    async def send(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Sends exactly this.

        Raises:
            ConnectionDropped: no whole answer came.
        """
        http = h11.Connection(h11.CLIENT)
        fields = [*headers.items(), ("Host", f"127.0.0.1:{self.port}"), ("Connection", "close")]
        if body:
            fields.append(("Content-Length", str(len(body))))
        request = h11.Request(method=method, target=path, headers=fields)
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            data = http.send(request) or b""
            data += http.send(h11.Data(data=body)) or b""
            data += http.send(h11.EndOfMessage()) or b""
            try:
                await stream.send_all(data)
                return await _receive(http, stream)
            except (h11.RemoteProtocolError, trio.BrokenResourceError) as error:
                raise ConnectionDropped(str(error)) from error


async def _receive(http: h11.Connection, stream: trio.SocketStream) -> Answer:
    head: h11.Response | None = None
    body = bytearray()
    while True:
        match http.next_event():
            case h11.NEED_DATA:
                http.receive_data(bytes(await stream.receive_some(_READ)))
            case h11.Response() as head:
                pass
            case h11.Data(data=data):
                body += data
            case h11.EndOfMessage() if head is not None:
                headers = {name.decode(): value.decode() for name, value in head.headers}
                return Answer(status=head.status_code, headers=headers, body=bytes(body))
            case h11.InformationalResponse():
                pass
            case _:
                raise ConnectionDropped("no answer")


def make_key() -> RSAPrivateKey:
    """A key as Chef's are."""
    return generate_private_key(public_exponent=65_537, key_size=2_048)


def public_pem(key: RSAPrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
