"""At most once: an order that comes a thousand times, out of order, on both kinds of link, after restarts of the agent,
after its run was reported and forgotten, and with the clocks set back – from a controller that misbehaves on purpose.

Real gRPC, the agent's own session, gate, nonces, executor and supervisors; only the controller is a script.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from lab.limits import within
from lab.signing import key_set_of
from lab.workload import starts, whitelist
from shovey_agent.desk.epoch import JobEpochs
from shovey_agent.desk.gate import OrderGate
from shovey_agent.desk.local import LocalDesk
from shovey_agent.desk.nonces import open_nonces
from shovey_agent.desk.trusted_keys import TrustedKeys
from shovey_agent.desk.whitelist_file import WhitelistFile
from shovey_agent.net.session import Hello, Session
from shovey_agent.run.executor import ExecutorConfig, open_executor
from shovey_trio.core.jobs.model import LinkMode
from shovey_trio.core.trust.key_trust import PublishedKeys
from shovey_trio.core.trust.order_signing import SigningKey
from shovey_trio.core.trust.orders import NodeIdentity, Order, OrderKind
from shovey_trio.demo.fleet import write_whitelist
from shovey_trio.identity.signing_keys import make_signing_key
from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import Listener, RpcError, ServerCall, open_channel, open_server, serve_bidi
from shovey_trio.rpc.convert import keys_message, signed_order_message, timestamp
from shovey_trio.rpc.signer import ActiveKeySigner
from shovey_trio.v1 import agent_service_pb2 as pb
from shovey_trio.v1 import order_pb2

pytestmark = pytest.mark.slow

RUNS = 5
COPIES = 1000
# How far clocks are set back, in seconds: by more, and orders count as dated ahead and are refused for that alone.
BACK = 600.0
IDENTITY = NodeIdentity(organization="default", node="web-1", agent_instance="instance")
Call = ServerCall[pb.AttachRequest, pb.AttachResponse]


@dataclass(slots=True)
class BadController:
    """Sends what it is given and keeps what it is told; confirms nothing unless asked to.

    Attributes:
        batch: orders for the next stream, in this order.
        confirm: whether reports are confirmed, so that the agent forgets the runs.
        clock: its time, in seconds off the true one.
    """

    key: SigningKey
    batch: list[order_pb2.SignedOrder] = field(default_factory=list)
    confirm: bool = False
    clock: float = 0.0
    reported: dict[str, pb.RunReport] = field(default_factory=dict)
    refused: list[pb.OrderRefused] = field(default_factory=list)
    answered: Callable[[], bool] = lambda: True

    async def attach(self, call: Call) -> None:
        """One stream: welcome, the whole batch, and then listening until enough was heard."""
        assert (await call.receive()).WhichOneof("message") == "hello"
        welcome = pb.AttachWelcome(
            controller_time=timestamp(time.time() + self.clock),
            epoch=1,
            signing_keys=keys_message(PublishedKeys(keys=key_set_of("default", self.key))),
            pending_orders=1,
        )
        await call.send(pb.AttachResponse(welcome=welcome))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_all, call)
            async for message in call:
                match message.WhichOneof("message"):
                    case "report":
                        self.reported[message.report.run_id] = message.report
                        if self.confirm:
                            durable = pb.ReportDurable(run_id=message.report.run_id)
                            await call.send(pb.AttachResponse(report_durable=durable))
                    case "refused":
                        self.refused.append(message.refused)
                    case "detach":
                        await call.send(pb.AttachResponse(detach_ok=pb.DetachOk()))
                if self.answered():
                    break
            nursery.cancel_scope.cancel(reason="enough was heard")

    async def swallow(self, call: ServerCall[pb.PushOutputRequest, pb.PushOutputResponse]) -> None:
        """Takes output and acknowledges every byte."""
        async for request in call:
            position = request.chunk.position + len(request.chunk.data)
            await call.send(pb.PushOutputResponse(run_id=request.run_id, durable_position=position))

    async def _send_all(self, call: Call) -> None:
        for order in self.batch:
            await call.send(pb.AttachResponse(order=order))


class Node:
    """A node whose agent is started anew for every stream, on the same state directory."""

    def __init__(self, directory: Path, controller: BadController, address: str) -> None:
        self.ledger = directory / "ledger"
        self._state = directory / "state"
        self._state.mkdir(mode=0o700)
        self._whitelist = directory / "whitelist.json"
        self._controller = controller
        self._address = address
        write_whitelist(self._whitelist, whitelist(self.ledger))

    async def attach(self, *, link: LinkMode) -> None:
        """One life of the agent with one stream, which the controller ends."""
        nonces = await open_nonces(self._state / "nonces", longest_life=7200.0)
        voided = await open_nonces(self._state / "voided", longest_life=10_800.0)
        keys = TrustedKeys.unset(self._state / "signing-keys.json", "default")

        async def learn(offered: PublishedKeys) -> None:
            await trio.to_thread.run_sync(keys.learn, offered)

        gate = OrderGate(
            identity=IDENTITY,
            keys=keys,
            nonces=nonces,
            voided=voided,
            epochs=JobEpochs(),
            whitelist=WhitelistFile(self._whitelist),
        )
        hello = Hello(agent_instance="instance", agent_version="1", link=link, tags={}, boot_id="boot")
        async with open_executor(ExecutorConfig(state_dir=self._state)) as executor:
            await executor.adopt()
            session = Session(hello=hello, desk=LocalDesk(executor, gate), new_keys=learn, woken_by="")

            async def tell() -> None:
                async for event in executor.events:
                    session.note(event.report.run_id if hasattr(event, "report") else event.run_id)

            async with open_channel(self._address, None) as channel, trio.open_nursery() as nursery:
                nursery.start_soon(tell)
                try:
                    await session.run(channel, linger=0.3 if link is LinkMode.ON_DEMAND else None, started=lambda: None)
                except* (RpcError, trio.BrokenResourceError):
                    pass  # the controller hangs up as it likes
                nursery.cancel_scope.cancel(reason="the stream is over")


def make_orders(key: SigningKey) -> list[order_pb2.SignedOrder]:
    """The start orders of some runs, valid for ten minutes."""
    signer = ActiveKeySigner({"default": key})
    now = time.time()
    return [
        signed_order_message(
            signer.sign(
                Order(
                    organization="default",
                    node="web-1",
                    agent_instance="instance",
                    job_id=f"job-{number}",
                    run_id=f"run-{number}",
                    kind=OrderKind.START,
                    command="quick",
                    run_timeout=60.0,
                    kill_grace=1.0,
                    issued_at=now,
                    expires_at=now + 600.0,
                    nonce=bytes([number]) * 16,
                    epoch=1,
                )
            )
        )
        for number in range(RUNS)
    ]


@pytest.mark.parametrize("link", [LinkMode.ATTACHED, LinkMode.ON_DEMAND])
@within(90)
async def test_an_order_that_comes_a_thousand_times_runs_once(tmp_path: Path, link: LinkMode) -> None:
    controller = BadController(make_signing_key(1.0))
    serves = [serve_bidi(methods.ATTACH, controller.attach), serve_bidi(methods.PUSH_OUTPUT, controller.swallow)]
    async with open_server([Listener(name="bad", address="127.0.0.1:0", serves=serves)]) as server:
        node = Node(tmp_path, controller, f"127.0.0.1:{server.port('bad')}")
        orders = make_orders(controller.key)
        choice = random.Random(1)
        copies = orders * (COPIES // 3 + 1)  # three batches of them are sent

        def shuffled() -> list[order_pb2.SignedOrder]:
            return choice.sample(copies, k=len(copies))

        everything_reported = lambda: len(controller.reported) == RUNS  # noqa: E731 - said twice
        # The first stream breaks at its first answer: what was sent and not taken is lost, acknowledgements too.
        controller.batch = shuffled()
        await node.attach(link=link)
        # After a restart, until every end was told. Nothing is confirmed.
        controller.batch, controller.answered = shuffled(), everything_reported
        await node.attach(link=link)
        assert {report.exit_code for report in controller.reported.values()} == {0}
        # The controller's clock, by which the node judges, goes back, and this time the agent may forget its runs.
        controller.clock, controller.confirm = -BACK, True
        controller.reported.clear()
        controller.batch = []
        await node.attach(link=link)
        while list((tmp_path / "state" / "runs").iterdir()):
            controller.reported.clear()
            await node.attach(link=link)
        # Nothing but the nonces knows the orders now; they are valid still, by a clock that was set back.
        controller.batch = shuffled()
        controller.answered = lambda: len(controller.refused) >= len(controller.batch)
        controller.refused.clear()
        await node.attach(link=link)
        assert {refused.reason for refused in controller.refused} == {"replayed"}
        assert starts(node.ledger) == {f"run-{number}": 1 for number in range(RUNS)}
