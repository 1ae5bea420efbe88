"""A schob in memory: serf and HTTP exactly as recorded, with the faults that matter to a server.

It runs a start order as often as it gets it, reports the end before the last of the output, sends each report once,
says nothing when it is cancelled, and takes any order whose signature fits its one key.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urljoin, urlsplit

import httpx2
import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

from shovey_trio.core.chef.signing import SigningVersion, sign_request
from shovey_trio.core.errors import ShoveyError
from shovey_trio.core.jobs.model import StreamName
from shovey_trio.core.serf.doorbell_plan import PlannedQuery
from shovey_trio.serf.link import ReceivedQuery, SerfLink, SerfSettings
from shovey_trio.shovey.protocol.report import PutStatus, RunPut, StreamPut, run_put_body, stream_put_body
from shovey_trio.shovey.protocol.wire import (
    ORDER_QUERY,
    START_EVENT,
    STATUS_QUERY,
    Action,
    PayloadMalformed,
    ShoveyOrder,
    parse_order,
    status_payload,
    verify_order,
)

_log = structlog.get_logger(__name__)
FAKE_SCHOB_EVENTS: Final = (f"query:{ORDER_QUERY}",)


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeCommand:
    """What a command of a fake schob does.

    Attributes:
        stdout: pieces of output, in order.
        stderr: the same.
        end: what is reported at the end; None: nothing ever, as of a schob that died.
        seconds: how long it takes.
        says_running: whether its start is reported.
    """

    stdout: tuple[str, ...] = ()
    stderr: tuple[str, ...] = ()
    end: RunPut | None = field(default_factory=lambda: RunPut(status=PutStatus.SUCCEEDED))
    seconds: float = 0.0
    says_running: bool = True


class FakeSchob:
    """One node. ``run`` must run.

    Args:
        name: client name.
        endpoint: URL of the server.
        key: the client's private key.
        signing_key: public key that orders are signed with; may be replaced.
        serf: how to reach the node's serf agent; must subscribe to ``FAKE_SCHOB_EVENTS``.
        commands: its whitelist.
        heartbeat: seconds between two heartbeats; a schob has 30.

    Attributes:
        starts: run ids of every start order it has carried out, repeats included.
        cancels: run ids of every cancel order.
        answers: HTTP status of every report, with what it reported.
        heartbeats_answered: how many heartbeats the server answered.
    """

    def __init__(
        self,
        *,
        name: str,
        endpoint: str,
        key: RSAPrivateKey,
        signing_key: RSAPublicKey,
        serf: SerfSettings,
        commands: Mapping[str, FakeCommand],
        heartbeat: float = 1.0,
    ) -> None:
        self.name = name
        self.signing_key = signing_key
        self.starts: list[str] = []
        self.cancels: list[str] = []
        self.answers: list[tuple[str, int]] = []
        self.heartbeats_answered = 0
        self._endpoint = endpoint
        self._key = key
        self._commands = commands
        self._heartbeat = heartbeat
        self._link = SerfLink(serf)
        self._running: dict[str, trio.CancelScope] = {}
        self._client = httpx2.AsyncClient(timeout=20.0)

    async def run(self) -> None:
        """Works until cancelled."""
        async with self._client, trio.open_nursery() as nursery:
            nursery.start_soon(self._link.run)
            nursery.start_soon(self._beat)
            async for event in self._link.events:
                if isinstance(event, ReceivedQuery) and event.name == ORDER_QUERY:
                    await self._take(nursery, event.payload)

    async def put(self, path: str, body: bytes) -> int:
        """A signed PUT, as schob sends it; returns the status of the answer, 0 for none.

        The path is resolved against the endpoint as go-chef does it (RFC 3986 with a relative path): what stands behind
        the endpoint's last slash falls away.
        """
        url = urljoin(self._endpoint + "/" * (urlsplit(self._endpoint).path == ""), path.removeprefix("/"))
        path = urlsplit(url).path
        headers = sign_request(
            method="PUT",
            path=path,
            body=body,
            user=self.name,
            now=time.time(),
            key=self._key,
            version=SigningVersion.V1_0,
        )
        headers |= {"Accept": "application/json", "Content-Type": "application/json", "Method": "PUT"}
        headers |= {"X-Chef-Version": "11.12.0", "X-Ops-Sign": "algorithm=sha1;version=1.0"}
        try:
            response = await self._client.put(url, content=body, headers=headers)
        except httpx2.TransportError as error:
            _log.warning("fake_schob.unanswered", path=path, error=str(error))
            return 0
        return response.status_code

    async def say(self, run_id: str, put: RunPut) -> int:
        """Reports a status, once."""
        body = run_put_body(put, node=self.name, run_id=run_id)
        answer = await self.put(f"/shovey/jobs/{run_id}/{self.name}", body)
        self.answers.append((put.status.value, answer))
        return answer

    async def send(self, run_id: str, put: StreamPut) -> int:
        """Sends a piece of output, once."""
        body = stream_put_body(put, node=self.name, run_id=run_id)
        answer = await self.put(f"/shovey/stream/{run_id}/{self.name}", body)
        self.answers.append((put.stream.value, answer))
        return answer

    async def _take(self, nursery: trio.Nursery, payload: bytes) -> None:
        try:
            order = parse_order(payload)
        except PayloadMalformed:
            return  # the real one ends here
        if not verify_order(order, self.signing_key):
            error = f"Command id {order.run_id} running '{order.command}' could not be verified!"
            put = RunPut(status=PutStatus.INVALID, error=f"{error} crypto/rsa: verification error")
            nursery.start_soon(self.say, order.run_id, put)
        elif order.action is Action.CANCEL:
            self.cancels.append(order.run_id)
            if scope := self._running.pop(order.run_id, None):
                scope.cancel(reason="cancelled; a schob says nothing of it")
        else:
            self.starts.append(order.run_id)
            nursery.start_soon(self._carry_out, order)

    async def _carry_out(self, order: ShoveyOrder) -> None:
        command = self._commands.get(order.command)
        if command is None:
            error = f"command {order.command} not in whitelist"
            await self.say(order.run_id, RunPut(status=PutStatus.NACKED, error=error))
            return
        if command.says_running:
            await self.say(order.run_id, RunPut(status=PutStatus.RUNNING))
        with trio.CancelScope() as scope:
            self._running[order.run_id] = scope
            await trio.sleep(command.seconds)
            if command.end is None:
                return
            await self.say(order.run_id, command.end)
            for stream, pieces in ((StreamName.STDERR, command.stderr), (StreamName.STDOUT, command.stdout)):
                for seq, piece in enumerate(pieces or ("",)):
                    is_last = seq >= len(pieces) - 1
                    put = StreamPut(stream=stream, seq=seq, is_last=is_last, data=piece.encode())
                    await self.send(order.run_id, put)

    async def _beat(self) -> None:
        await self._link.announce(START_EVENT, self.name.encode(), coalesce=True)
        query = PlannedQuery(
            name=STATUS_QUERY,
            payload=status_payload(self.name),
            filter_nodes=(),
            targets=(),
            request_ack=False,
            timeout=0.0,
            size=0,
        )
        while True:
            try:
                progress = await self._link.ring(query)
                with trio.move_on_after(self._heartbeat):
                    await progress.wait_changed()
                self.heartbeats_answered += bool(progress.answers)
            except ShoveyError as error:
                _log.warning("fake_schob.heartbeat", error=error.message)
            await trio.sleep(self._heartbeat)
