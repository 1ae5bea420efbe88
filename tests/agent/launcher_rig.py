"""A real launcher process, and a peer that speaks its socket's protocol by hand, as well or badly as a test likes."""

from __future__ import annotations

import json
import os
import pwd
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lab.signing import key_set_of
from shovey_agent.desk.launcher_plan import LauncherPlan
from shovey_agent.desk.launcher_trust import save_trust
from shovey_trio.core.trust.key_sets import KeySet, encode_key_set, sign_key_set
from shovey_trio.core.trust.key_trust import PublishedKeys
from shovey_trio.core.trust.order_signing import SigningKey
from shovey_trio.core.trust.orders import NodeIdentity, Order, SignedOrder
from shovey_trio.demo.fleet import write_whitelist
from shovey_trio.demo.processes import ManagedProcess
from shovey_trio.identity.signing_keys import make_signing_key
from shovey_trio.rpc.convert import signed_order_message
from shovey_trio.rpc.signer import ActiveKeySigner
from shovey_trio.v1 import launcher_pb2 as pb

from .orders import make_order

IDENTITY = NodeIdentity(organization="org", node="n", agent_instance="instance")
_HEADER = struct.Struct("!I")


class Installation:
    """A launcher's files and its process. What every command did stands in ``ledger``, a line each."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.key = make_signing_key(0.0)
        self.root = Ed25519PrivateKey.generate()
        self.ledger = directory / "ledger"
        self.whitelist = directory / "whitelist.json"
        self.socket = directory / "run" / "launcher.sock"
        self.state_dir = directory / "launcher"
        self.socket.parent.mkdir(mode=0o755)
        self.set_whitelist()
        save_trust(self.state_dir, IDENTITY, self.published(key_set_of("org", self.key)), root_public_key=b"")
        plan = LauncherPlan(
            state_dir=str(self.state_dir),
            socket=str(self.socket),
            user=pwd.getpwuid(os.geteuid()).pw_name,
            whitelist=str(self.whitelist),
            max_runs=10,
            max_processes=2048,
            output_cap=2**20,
            spool_cap=2**24,
            log_level="info",
            log_format="json",
        )
        self.process = self.with_plan(plan)
        self.plan = plan

    def with_plan(self, plan: LauncherPlan) -> ManagedProcess:
        command = [sys.executable, "-P", "-m", "shovey_agent.desk.launcher", json.dumps(asdict(plan))]
        return ManagedProcess(command, log=self.directory / "launcher.log")

    def set_whitelist(self) -> None:
        note = f'echo "$SHOVEY_RUN_ID $*" >> {self.ledger}'
        commands = {
            "note": {"argv": ["sh", "-c", note, "sh"]},
            "wait": {"argv": ["sh", "-c", f"{note}; echo begun; exec sleep 600", "sh"]},
            "say": {
                "argv": ["sh", "-c", f'{note}; echo "secret: $TOKEN"', "sh"],
                "env": {"TOKEN": {"pattern": "[a-z ]{4,80}"}},
            },
        }
        write_whitelist(self.whitelist, commands)

    def published(self, keys: KeySet, *, root: Ed25519PrivateKey | None = None) -> PublishedKeys:
        root = root or self.root
        public = root.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return PublishedKeys(keys=keys, signed=sign_key_set(encode_key_set(keys), root), root_public_key=public)

    def ran(self) -> list[str]:
        """The runs whose command has run."""
        return [line.split()[0] for line in self.ledger.read_text().splitlines()] if self.ledger.exists() else []

    def logged(self, event: str) -> list[dict[str, Any]]:
        """What the launcher's log says of an event."""
        lines = (line for line in self.process.log.read_text().splitlines() if line.startswith("{"))
        return [record for record in map(json.loads, lines) if record["event"] == event]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Installation]:
        """The launcher, up; at the end it and all its commands are ended."""
        from shovey_agent.run.bury import abandon_run
        from shovey_agent.run.spool import Spool, SpoolLimits

        await self.start()
        try:
            yield self
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
                await self.process.stop()
                spool = Spool(self.state_dir, SpoolLimits())
                for run_id in list(spool.run_ids()):
                    await trio.to_thread.run_sync(abandon_run, spool, run_id)

    async def start(self) -> None:
        await self.process.start()
        while True:
            self.process.check()
            try:
                async with await trio.open_unix_socket(str(self.socket)):
                    return
            except OSError:
                await trio.sleep(0.05)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Peer]:
        async with await trio.open_unix_socket(str(self.socket)) as stream:
            peer = Peer(stream)
            await peer.until(lambda reply: reply.HasField("ready"))
            yield peer

    def order(self, **changes: Any) -> Order:
        return make_order(**{"command": "note", "run_timeout": 300.0, **changes})

    def sign(self, order: Order, key: SigningKey | None = None) -> SignedOrder:
        return ActiveKeySigner({order.organization: key or self.key}).sign(order)


class Peer:
    """Whoever has the socket. ``replies`` is everything that was heard."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.replies: list[pb.LauncherReply] = []
        self._held = b""
        self._next_id = 1

    async def send(self, request: pb.LauncherRequest) -> int:
        request.id = self._next_id
        self._next_id += 1
        await self.send_frame(request.SerializeToString())
        return request.id

    async def send_frame(self, frame: bytes) -> None:
        await self.stream.send_all(_HEADER.pack(len(frame)) + frame)

    async def receive(self) -> pb.LauncherReply | None:
        """The next reply, or None once the launcher has closed."""
        while len(self._held) < _HEADER.size or len(self._held) < _HEADER.size + _HEADER.unpack_from(self._held)[0]:
            try:
                data = await self.stream.receive_some(65536)
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            self._held += data
        end = _HEADER.size + _HEADER.unpack_from(self._held)[0]
        reply = pb.LauncherReply.FromString(self._held[_HEADER.size : end])
        self._held = self._held[end:]
        self.replies.append(reply)
        return reply

    async def until(self, wanted: Callable[[pb.LauncherReply], bool]) -> pb.LauncherReply:
        """The first reply that is wanted, among those heard already too."""
        for reply in self.replies:
            if wanted(reply):
                return reply
        while (reply_ := await self.receive()) is not None:
            if wanted(reply_):
                return reply_
        raise AssertionError("the launcher has closed the connection")

    async def cut_off(self) -> None:
        """Waits until the launcher closes this connection."""
        while await self.receive() is not None:
            pass

    async def ask(self, request: pb.LauncherRequest) -> pb.LauncherAnswer:
        asked = await self.send(request)
        return (await self.until(lambda reply: reply.HasField("answer") and reply.answer.id == asked)).answer

    async def hand_in(self, signed: SignedOrder, *, controller_time: float | None = None) -> pb.OrderVerdict:
        at = time.time() if controller_time is None else controller_time
        take = pb.TakeOrder(order=signed_order_message(signed), controller_time=at)
        return (await self.ask(pb.LauncherRequest(take_order=take))).verdict

    async def refusal(self, signed: SignedOrder, **how: Any) -> str:
        verdict = await self.hand_in(signed, **how)
        assert verdict.kind == pb.ORDER_VERDICT_KIND_REFUSED, verdict
        return verdict.reason

    async def run_in_state(self, run_id: str, state: int) -> pb.SpooledRun:
        def there(reply: pb.LauncherReply) -> bool:
            return reply.news.run.run_id == run_id and reply.news.run.state == state

        return (await self.until(there)).news.run

    async def confirm(self, run_id: str) -> bool:
        return (await self.ask(pb.LauncherRequest(confirm_run=pb.ConfirmRun(run_id=run_id)))).done.changed

    async def read(self, run_id: str, *, position: int = 0, limit: int = 2**18) -> bytes:
        read = pb.ReadSpool(run_id=run_id, position=position, limit=limit)
        answer = await self.ask(pb.LauncherRequest(read_spool=read))
        return b"".join(chunk.data for chunk in answer.output.chunks)
