"""The server that runs are reported to: Chef-signed PUTs, as schob sends them, and sent until they are answered."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit

import httpx2
import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from shovey_trio.core.chef.signing import SigningVersion, sign_request
from shovey_trio.core.errors import InvalidRequest

_log = structlog.get_logger(__name__)

# goiardi answers a PUT in milliseconds; a server that takes longer is taken for gone, and asked again.
_ANSWER_DEADLINE: Final = 30.0
_PAUSE_MIN: Final = 0.5
_PAUSE_MAX: Final = 60.0
# What a repeat may change: the server is overloaded, a clock or a key is being set right.
_REPEATED: Final = frozenset({401, 408, 425, 429})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerIdentity:
    """Where to report, and as whom.

    Attributes:
        endpoint: URL of the server, with the organization's path if it has one.
        node: this node's client name.
        key: its private key.
    """

    endpoint: str
    node: str
    key: RSAPrivateKey


class ShoveyServer:
    """Reports go out one after the other per run, and side by side for different runs."""

    def __init__(self, identity: ServerIdentity, client: httpx2.AsyncClient) -> None:
        self._identity = identity
        self._client = client
        self._base = urlsplit(identity.endpoint).path.rstrip("/")
        self._origin = identity.endpoint.removesuffix("/").removesuffix(self._base)

    async def put_run(self, run_id: str, body: bytes) -> int:
        """Reports a run's status; see ``put_stream``."""
        return await self._put(f"/shovey/jobs/{quote(run_id, safe='')}/{self._node}", body)

    async def put_stream(self, run_id: str, body: bytes) -> int:
        """Sends a piece of output, again and again until the server has taken or refused it.

        Returns the HTTP status: 2xx, 409 for what was there already, another 4xx for what it will never take.
        Cancelled, it may have been taken; repeating it is harmless.
        """
        return await self._put(f"/shovey/stream/{quote(run_id, safe='')}/{self._node}", body)

    @property
    def _node(self) -> str:
        return quote(self._identity.node, safe="")

    async def _put(self, path: str, body: bytes) -> int:
        pause = _PAUSE_MIN
        while True:
            outcome = await self._try(self._base + path, body)
            if isinstance(outcome, int) and outcome < 500 and outcome not in _REPEATED:
                return outcome
            _log.warning("report.repeated", path=path, outcome=str(outcome), retry_in=round(pause, 1))
            await trio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
            pause = min(pause * 2, _PAUSE_MAX)

    async def _try(self, path: str, body: bytes) -> int | str:
        """One attempt: an HTTP status, or why there is none."""
        # Signed anew each time: an old time would not be believed.
        headers = _headers(self._identity, path, body)
        with trio.move_on_after(_ANSWER_DEADLINE):
            try:
                response = await self._client.put(self._origin + path, content=body, headers=headers)
            except httpx2.RequestError as error:
                return f"{type(error).__name__}: {error}"
            if response.status_code >= 400:
                _log.info("report.refused", path=path, status=response.status_code, answer=response.text[:200])
            return response.status_code
        return f"no answer within {_ANSWER_DEADLINE} s"


def _headers(identity: ServerIdentity, path: str, body: bytes) -> dict[str, str]:
    """As recorded from schob, ``Method`` included; protocol 1.0, or 1.1 where the name is too long for that."""
    for version in (SigningVersion.V1_0, SigningVersion.V1_1):
        try:
            signed = sign_request(
                method="PUT",
                path=path,
                body=body,
                user=identity.node,
                now=time.time(),
                key=identity.key,
                version=version,
            )
        except InvalidRequest:
            continue
        return {
            "Accept": "application/json",
            "Content-Type": "application/json",
            "Method": "PUT",
            "X-Chef-Version": "11.12.0",
            **signed,
            "X-Ops-Sign": f"algorithm=sha1;version={version}",
        }
    raise InvalidRequest("the key is too short to sign with", field="key_file")
