"""An agent without a node: the real protocol over its own connection and certificate, commands that run nothing.

It enrols with a token, attaches with mutual TLS, verifies the signature of each order and judges it as a real agent
does, answers it with the same messages, and pushes output within the same windows. What it leaves out is what a real
agent spends on its own machine: whitelist, spool, fsync and processes.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import trio

from shovey_trio.bench.simulated_run import Behaviour, Kind, OutputPusher, SimulatedRun
from shovey_trio.core.jobs.events import ReportOutcome, RunReport
from shovey_trio.core.jobs.model import ProofKind
from shovey_trio.core.trust.key_sets import KeySet
from shovey_trio.core.trust.order_signing import verify_order
from shovey_trio.core.trust.orders import NodeIdentity, Order, OrderKind, judge_order
from shovey_trio.identity.requests import make_private_key, make_request, private_key_pem
from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import Channel, ClientStream, ClientTls, RpcError, open_channel
from shovey_trio.rpc.convert import keys_value, report_message, seconds, signed_order_value, timestamp
from shovey_trio.rpc.order_codec import parse_order
from shovey_trio.v1 import agent_service_pb2 as pb
from shovey_trio.v1 import node_pb2

_ANSWER = 90.0
_RETRY = 1.0


@dataclass(slots=True, kw_only=True)
class Tally:
    """What all agents of one process have seen."""

    attached: int = 0
    dropped: int = 0
    orders: int = 0
    refused: int = 0
    confirmed: int = 0
    last_failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a simulated agent got by enrolling."""

    node: str
    organization: str
    agent_instance: str
    tls: ClientTls
    keys: KeySet
    control_address: str


async def enroll(channel: Channel, *, organization: str, node: str, token: str) -> Credentials:
    """Exchanges a token for credentials, over a channel to the enrolment listener.

    Raises:
        RpcError: refused, or unreachable.
    """
    key = make_private_key()
    instance = str(uuid.uuid4())
    answer = await channel.unary(
        methods.ENROLL,
        pb.EnrollRequest(
            token=token, organization=organization, node=node, csr=make_request(key), agent_instance=instance
        ),
    )
    return Credentials(
        node=node,
        organization=organization,
        agent_instance=instance,
        tls=ClientTls(
            ca=answer.ca_certificates, certificate=answer.certificate_chain, private_key=private_key_pem(key)
        ),
        keys=keys_value(answer.signing_keys).keys,
        control_address=answer.control_address,
    )


class SimulatedAgent:
    """One agent; ``serve`` keeps it attached."""

    def __init__(self, credentials: Credentials, behaviours: Mapping[str, Behaviour], tally: Tally) -> None:
        self._credentials = credentials
        self._identity = NodeIdentity(
            organization=credentials.organization,
            node=credentials.node,
            agent_instance=credentials.agent_instance,
        )
        self._behaviours = behaviours
        self._tally = tally
        self._keys = credentials.keys
        self._epoch = 0
        self._clock = 0.0  # the controller's time is this plus trio's
        self._runs: dict[str, SimulatedRun] = {}
        self._outbox: deque[pb.AttachRequest] = deque()
        self._work = trio.Event()

    async def serve(self) -> None:
        """Attaches, and again whenever the stream was lost, until cancelled."""
        while True:
            try:
                async with open_channel(self._credentials.control_address, self._credentials.tls) as channel:
                    await self._session(channel)
            except* (RpcError, trio.BrokenResourceError, trio.TooSlowError) as failures:
                self._tally.last_failure = repr(failures.exceptions[0])
            self._tally.dropped += 1
            await trio.sleep(_RETRY)

    async def _session(self, channel: Channel) -> None:
        async with channel.stream(methods.ATTACH) as stream:
            with trio.fail_after(_ANSWER):
                await stream.send(self._hello())
                welcome = (await stream.receive()).welcome
            self._clock = seconds(welcome.controller_time) - trio.current_time()
            self._say(pb.AttachRequest(clock=pb.AgentClock(agent_time=timestamp(time.time()))))
            self._keys = keys_value(welcome.signing_keys).keys
            self._epoch = welcome.epoch
            self._tally.attached += 1
            try:
                async with trio.open_nursery() as nursery:
                    pusher = OutputPusher(channel, nursery, self._runs)
                    nursery.start_soon(self._write, stream)
                    async for message in stream:
                        self._take(message, pusher, nursery)
                    nursery.cancel_scope.cancel(reason="the stream has ended")
            finally:
                self._tally.attached -= 1

    def _hello(self) -> pb.AttachRequest:
        return pb.AttachRequest(
            hello=pb.AttachHello(
                agent_instance=self._credentials.agent_instance,
                agent_version="simulated",
                link=node_pb2.LINK_MODE_ATTACHED,
                boot_id="simulated",
                agent_time=timestamp(time.time()),
                clock_follows=True,
                runs=[pb.KnownRun(run_id=run_id, state=pb.KNOWN_RUN_STATE_RUNNING) for run_id in self._runs],
            )
        )

    # -- orders

    def _take(self, message: pb.AttachResponse, pusher: OutputPusher, nursery: trio.Nursery) -> None:
        match message.WhichOneof("message"):
            case "order":
                self._take_order(message, pusher, nursery)
            case "report_durable":
                self._tally.confirmed += 1
                self._runs.pop(message.report_durable.run_id, None)
            case "forget":
                self._end(message.forget.run_id)

    def _take_order(self, message: pb.AttachResponse, pusher: OutputPusher, nursery: trio.Nursery) -> None:
        self._tally.orders += 1
        signed = signed_order_value(message.order)
        order = parse_order(signed.order) if verify_order(signed, self._keys, time.time()) is None else None
        if not isinstance(order, Order) or self._refuses(order):
            self._tally.refused += 1
            return
        if order.kind is OrderKind.CANCEL:
            self._end(order.run_id)
        elif order.run_id not in self._runs:
            self._start(order, pusher, nursery)

    def _refuses(self, order: Order) -> bool:
        now = self._clock + trio.current_time()
        return (
            judge_order(order, identity=self._identity, controller_now=now, lowest_epoch=self._epoch) is not None
            or order.command not in self._behaviours
        )

    def _start(self, order: Order, pusher: OutputPusher, nursery: trio.Nursery) -> None:
        run = self._runs[order.run_id] = SimulatedRun(order.run_id)
        now = timestamp(time.time())
        self._say(pb.AttachRequest(accepted=pb.OrderAccepted(run_id=order.run_id, at=now)))
        self._say(pb.AttachRequest(started=pb.RunStarted(run_id=order.run_id, at=now)))
        behaviour = self._behaviours[order.command]
        if behaviour.kind is Kind.EXIT:
            self._report(run)
        else:
            nursery.start_soon(self._perform, run, behaviour, pusher)

    def _end(self, run_id: str) -> None:
        run = self._runs.get(run_id)
        if run is not None:
            run.scope.cancel(reason="the controller cancels it")

    def _report(self, run: SimulatedRun, *, cancelled: bool = False) -> None:
        ended: dict[str, Any] = (
            {"outcome": ReportOutcome.CANCELLED, "proof": ProofKind.EMPTY_SUBREAPER, "signal": 15}
            if cancelled
            else {"outcome": ReportOutcome.EXITED, "exit_code": 0}
        )
        now = time.time()
        report = RunReport(run_id=run.run_id, started_at=now, finished_at=now, output_bytes=run.sent, **ended)
        self._say(pb.AttachRequest(report=report_message(report)))

    async def _perform(self, run: SimulatedRun, behaviour: Behaviour, pusher: OutputPusher) -> None:
        with run.scope:
            await pusher.perform(run, behaviour)
        self._report(run, cancelled=run.scope.cancelled_caught)

    # -- up

    def _say(self, message: pb.AttachRequest) -> None:
        self._outbox.append(message)  # a handful for each order
        self._work.set()

    async def _write(self, stream: ClientStream[pb.AttachRequest, pb.AttachResponse]) -> None:
        while True:
            while self._outbox:
                await stream.send(self._outbox.popleft())
            self._work = trio.Event()
            await self._work.wait()
