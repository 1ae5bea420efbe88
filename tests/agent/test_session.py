"""An agent's gate, session and link against a controller made by hand: what it refuses, and that it stays up."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from lab.limits import within
from lab.rpc_certificates import CertificateAuthority
from lab.signing import key_set_of
from shovey_agent.credentials import Credentials
from shovey_agent.desk.epoch import JobEpochs
from shovey_agent.desk.gate import OrderGate
from shovey_agent.desk.local import LocalDesk
from shovey_agent.desk.nonces import open_nonces
from shovey_agent.desk.whitelist_file import WhitelistFile
from shovey_agent.net.link import ControllerLink
from shovey_agent.net.session import Hello, Session
from shovey_agent.program.agent_plan import Reconnect
from shovey_agent.run.executor import Executor, ExecutorConfig, open_executor
from shovey_trio.core.jobs.model import LinkMode
from shovey_trio.core.trust.key_trust import PublishedKeys
from shovey_trio.core.trust.order_signing import SigningKey
from shovey_trio.core.trust.orders import NONCE_BYTES, NodeIdentity, Order, OrderKind, SignedOrder
from shovey_trio.identity.signing_keys import make_signing_key
from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import Listener, ServerCall, open_bridge, open_server, serve_bidi
from shovey_trio.rpc.convert import keys_message, order_bytes, signed_order_message, timestamp
from shovey_trio.rpc.signer import ActiveKeySigner
from shovey_trio.v1 import agent_service_pb2 as pb

from .orders import EPOCH, make_order

KEY: SigningKey = make_signing_key(0.0)
IDENTITY = NodeIdentity(organization="org", node="n", agent_instance="instance")


async def _ignore(_: PublishedKeys) -> None:
    """For sessions in which keys do not change."""


def _sign(order: Order, key: SigningKey = KEY) -> SignedOrder:
    return ActiveKeySigner({order.organization: key}).sign(order)


@dataclass(eq=False)
class Controller:
    """The other end, made by hand: it says what the test sends, and keeps what it hears.

    ``hold``: welcomes nobody before it is set. ``ended``: streams that agents have ended.
    """

    welcome: pb.AttachResponse | None = None
    hold: trio.Event | None = None
    ended: int = 0
    clocks: int = 0
    hellos: list[pb.AttachHello] = field(default_factory=list)
    heard: list[pb.AttachRequest] = field(default_factory=list)
    call: ServerCall[Any, Any] | None = None
    allow_leave: bool = True
    cut: trio.Event = field(default_factory=trio.Event)
    changed: trio.Event = field(default_factory=trio.Event)

    async def attach(self, call: ServerCall[Any, Any]) -> None:
        self.hellos.append((await call.receive()).hello)
        self._note()
        if self.hold is not None:
            await self.hold.wait()
        keys = PublishedKeys(keys=key_set_of("org", KEY))
        welcome = pb.AttachWelcome(controller_time=timestamp(time.time()), epoch=EPOCH, signing_keys=keys_message(keys))
        first = self.welcome or pb.AttachResponse(welcome=welcome)
        await call.send(first)
        if first.HasField("welcome"):  # else the agent leaves, and what is sent here is lost
            self.call = call
        self._note()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cut_when_told, nursery.cancel_scope)
                async for message in call:
                    if message.HasField("clock"):
                        self.clocks += 1
                    else:
                        self.heard.append(message)
                    self._note()
                    if message.WhichOneof("message") == "detach" and self.allow_leave:
                        await call.send(pb.AttachResponse(detach_ok=pb.DetachOk()))
                nursery.cancel_scope.cancel(reason="the agent has left")
        finally:
            self.ended += 1
            self._note()

    async def push(self, call: ServerCall[Any, Any]) -> None:
        async for message in call:
            end = message.chunk.position + len(message.chunk.data)
            await call.send(pb.PushOutputResponse(run_id=message.run_id, durable_position=end))

    async def send_order(self, signed: SignedOrder) -> None:
        await self.until(lambda: self.call is not None)
        assert self.call is not None
        await self.call.send(pb.AttachResponse(order=signed_order_message(signed)))

    async def until(self, holds: Callable[[], Any]) -> None:
        while not holds():
            await self.changed.wait()

    async def report_of(self, run_id: str) -> pb.RunReport:
        found: list[pb.RunReport] = []

        def there() -> bool:
            found.extend(m.report for m in self.heard if m.HasField("report") and m.report.run_id == run_id)
            return bool(found)

        await self.until(there)
        return found[0]

    async def refusal_of(self, run_id: str) -> str:
        await self.until(lambda: self._refusals(run_id))
        return self._refusals(run_id)[0]

    def _refusals(self, run_id: str) -> list[str]:
        return [m.refused.reason for m in self.heard if m.HasField("refused") and m.refused.run_id == run_id]

    async def _cut_when_told(self, scope: trio.CancelScope) -> None:
        await self.cut.wait()
        self.cut = trio.Event()
        scope.cancel(reason="cut by the test")

    def _note(self) -> None:
        changed, self.changed = self.changed, trio.Event()
        changed.set()


@dataclass(eq=False)
class Agent:
    """The agent's network side, as ``agent.run_agent`` puts it together."""

    link: ControllerLink
    executor: Executor
    epochs: JobEpochs
    authority: CertificateAuthority
    credentials: Credentials

    def take_credentials(self, authority: CertificateAuthority) -> None:
        """Goes on with a certificate of that authority."""
        identity = authority.client_tls("shovey://org/node/n")
        assert identity.certificate is not None
        assert identity.private_key is not None
        self.credentials = replace(
            self.credentials, certificate_chain=identity.certificate, private_key=identity.private_key
        )
        self.link.credentials_changed()


@asynccontextmanager
async def _rig(
    directory: Path, *, mode: LinkMode = LinkMode.ATTACHED, controller: Controller | None = None
) -> AsyncIterator[tuple[Controller, Agent]]:
    controller = controller or Controller()
    authority = CertificateAuthority()
    listener = Listener(
        name="control",
        address="127.0.0.1:0",
        serves=[serve_bidi(methods.ATTACH, controller.attach), serve_bidi(methods.PUSH_OUTPUT, controller.push)],
        tls=authority.server_tls(mutual=True),
    )
    whitelist = directory / "whitelist.json"
    whitelist.write_text('{"true": "true", "cat": "sh -c \'echo out; echo err >&2\'", "sleep": "sleep 60"}')
    epochs = JobEpochs()
    identity = authority.client_tls("shovey://org/node/n")
    assert identity.certificate is not None
    assert identity.private_key is not None
    credentials = Credentials(
        organization="org",
        node="n",
        agent_instance="instance",
        enroll_address="127.0.0.1:1",
        control_address="127.0.0.1:1",
        certificate_chain=identity.certificate,
        ca_certificates=authority.pem,
        private_key=identity.private_key,
    )
    config = ExecutorConfig(state_dir=directory / "state", poll_interval=0.05)
    async with open_server([listener]) as server, open_bridge(), open_executor(config) as executor:
        gate = OrderGate(
            identity=IDENTITY,
            keys=key_set_of("org", KEY),
            nonces=await open_nonces(directory / "nonces", longest_life=7200),
            voided=await open_nonces(directory / "voided", longest_life=14400),
            epochs=epochs,
            whitelist=WhitelistFile(whitelist),
        )
        desk = LocalDesk(executor, gate)
        hello = Hello(agent_instance="instance", agent_version="1", link=mode, tags={}, boot_id="boot")
        taking = trio.Lock()
        link = ControllerLink(
            desk=desk,
            mode=mode,
            reconnect=Reconnect(delay_min=0.05, delay_max=0.1, linger=0.05),
            server=f"127.0.0.1:{server.port('control')}",
            credentials=lambda: agent.credentials,
            new_session=lambda woken_by: Session(
                hello=hello, desk=desk, new_keys=_ignore, woken_by=woken_by, taking=taking
            ),
        )
        agent = Agent(link, executor, epochs, authority, credentials)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.serve, link)  # noqa: ASYNC113
            nursery.start_soon(link.serve)  # noqa: ASYNC113
            yield controller, agent
            nursery.cancel_scope.cancel(reason="the test is over")


@within(30)
async def test_a_good_order_runs_once_however_often_it_comes(tmp_path: Path) -> None:
    async with _rig(tmp_path) as (controller, agent):
        signed = _sign(order := make_order(command="cat"))
        for _ in range(3):
            await controller.send_order(signed)
        report = await controller.report_of(order.run_id)
        assert (report.outcome, report.exit_code, report.output_bytes) == (pb.REPORT_OUTCOME_EXITED, 0, 8)
        assert [run.run_id for run in agent.executor.known_runs()] == [order.run_id]
        assert agent.epochs.of(order.job_id) == EPOCH


@within(30)
@pytest.mark.parametrize("step", [3600.0, -3600.0, 31 * 86_400.0, -31 * 86_400.0])
async def test_orders_are_judged_by_the_time_that_the_controller_told_last(tmp_path: Path, step: float) -> None:
    async with _rig(tmp_path) as (controller, _):
        await _works(controller)
        assert controller.call is not None
        now = time.time() + step
        await controller.call.send(pb.AttachResponse(clock=pb.ControllerClock(controller_time=timestamp(now))))
        order = make_order(command="true", issued_at=now, expires_at=now + 60)
        await controller.send_order(_sign(order))
        assert (await controller.report_of(order.run_id)).exit_code == 0
        late = make_order(command="true", issued_at=now - 100, expires_at=now - 40)
        await controller.send_order(_sign(late))
        assert await controller.refusal_of(late.run_id) == "expired"
        assert controller.clocks == 2, "the node's own clock is measured anew"


@within(30)
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"organization": "other"}, "other_organization"),
        ({"node": "other"}, "other_node"),
        ({"agent_instance": "other"}, "other_instance"),
        ({"kind": OrderKind.RESERVE}, "unsupported_kind"),
        ({"nonce": bytes(NONCE_BYTES - 1)}, "malformed"),
        ({"epoch": EPOCH - 1}, "old_epoch"),
        ({"expires_at": 1.0}, "expired"),
        ({"issued_at": 4e9, "expires_at": 4e9}, "future_dated"),
        ({"command": "rm"}, "not_whitelisted"),
        ({"run_timeout": 0.0}, "malformed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_order_that_is_signed_and_not_for_here_and_now_is_refused_with_its_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    async with _rig(tmp_path) as (controller, agent):
        agent.epochs.raise_to((refused := make_order(**changes)).job_id, EPOCH)
        await controller.send_order(_sign(refused))
        assert await controller.refusal_of(refused.run_id) == reason
        await _works(controller)
        assert refused.run_id not in {run.run_id for run in agent.executor.known_runs()}


@within(30)
async def test_an_order_that_nobody_trusted_signed_is_not_even_answered(tmp_path: Path) -> None:
    async with _rig(tmp_path) as (controller, agent):
        good = _sign(make_order())
        stranger = make_signing_key(0.0)
        for forged in (
            _sign(make_order(), stranger),
            replace(_sign(make_order(), stranger), key_id=KEY.key_id),
            replace(good, order=order_bytes(make_order())),
            replace(good, order=good.order + b"\x00"),
            replace(good, signature=b""),
            replace(good, order=b"", signature=b"\xff" * 64),
        ):
            await controller.send_order(forged)
        await _works(controller)
        assert not [message for message in controller.heard if message.HasField("refused")]
        assert len(agent.executor.known_runs()) == 1


@within(30)
async def test_a_nonce_is_good_for_one_run_alone(tmp_path: Path) -> None:
    async with _rig(tmp_path) as (controller, _):
        first = make_order()
        await controller.send_order(_sign(first))
        await controller.report_of(first.run_id)
        second = replace(first, run_id=str(uuid.uuid4()))
        await controller.send_order(_sign(second))
        assert await controller.refusal_of(second.run_id) == "replayed"


@within(30)
async def test_a_run_that_was_cancelled_before_it_came_never_starts(tmp_path: Path) -> None:
    async with _rig(tmp_path) as (controller, agent):
        start = make_order()
        cancel = replace(start, kind=OrderKind.CANCEL, nonce=uuid.uuid4().bytes)
        await controller.send_order(_sign(cancel))
        report = await controller.report_of(start.run_id)
        assert report.outcome == pb.REPORT_OUTCOME_CANCELLED
        await controller.send_order(_sign(start))
        assert await controller.refusal_of(start.run_id) == "replayed"
        assert agent.executor.known_runs() == ()


@within(30)
async def test_a_damaged_ledger_of_void_runs_allows_no_false_cancelled(tmp_path: Path) -> None:
    (tmp_path / "voided").write_bytes(b"damaged\n")
    async with _rig(tmp_path) as (controller, _):
        start = make_order()
        await controller.send_order(_sign(replace(start, kind=OrderKind.CANCEL, nonce=uuid.uuid4().bytes)))
        # What could not be made sure is not said: the controller asks again. The run may still come, and be true.
        await controller.send_order(_sign(start))
        assert (await controller.report_of(start.run_id)).outcome == pb.REPORT_OUTCOME_EXITED


@within(30)
async def test_a_node_whose_disk_takes_no_nonce_refuses_and_stays_up(tmp_path: Path) -> None:
    async with _rig(tmp_path) as (controller, _):
        await controller.until(lambda: controller.call)
        # Whoever tests is often root, whom no permission stops; a directory does.
        kept = (tmp_path / "nonces").read_bytes()
        (tmp_path / "nonces").unlink()
        (tmp_path / "nonces").mkdir()
        await controller.send_order(_sign(refused := make_order()))
        assert await controller.refusal_of(refused.run_id) == "spool_full"
        (tmp_path / "nonces").rmdir()
        (tmp_path / "nonces").write_bytes(kept)
        await _works(controller)


@within(30)
@pytest.mark.parametrize(
    "welcome", [pb.AttachResponse(detach_ok=pb.DetachOk()), pb.AttachResponse()], ids=["other", "nothing"]
)
async def test_a_controller_that_does_not_welcome_is_called_again(tmp_path: Path, welcome: pb.AttachResponse) -> None:
    async with _rig(tmp_path, controller=Controller(welcome=welcome)) as (controller, _):
        await controller.until(lambda: len(controller.hellos) >= 3)
        controller.welcome = None
        controller.call = None
        await _works(controller)


@within(30)
async def test_an_on_demand_agent_leaves_when_nothing_waits_and_comes_when_woken(tmp_path: Path) -> None:
    async with _rig(tmp_path, mode=LinkMode.ON_DEMAND) as (controller, agent):
        await controller.until(lambda: [m for m in controller.heard if m.HasField("detach")])
        agent.link.wake("job-7")
        await controller.until(lambda: len(controller.hellos) == 2)
        assert controller.hellos[1].woken_by_job == "job-7"


@within(30)
async def test_an_on_demand_agent_whose_stream_breaks_comes_back_unwoken(tmp_path: Path) -> None:
    async with _rig(tmp_path, mode=LinkMode.ON_DEMAND) as (controller, _):
        controller.allow_leave = False
        await controller.send_order(_sign(order := make_order()))
        await controller.report_of(order.run_id)
        controller.cut.set()
        # Its report is not confirmed, so it has something to say.
        await controller.until(lambda: len(controller.hellos) >= 2)
        assert [run.run_id for run in controller.hellos[-1].runs] == [order.run_id]


async def _works(controller: Controller) -> None:
    """The agent is up: a good order runs."""
    await controller.send_order(_sign(order := make_order()))
    assert (await controller.report_of(order.run_id)).exit_code == 0


# -- one stream takes over from another


async def _hold_second_stream(controller: Controller, agent: Agent) -> trio.Event:
    """An attached agent gets new credentials and says hello with them; it is welcomed when the event is set."""
    await controller.until(lambda: controller.call)
    controller.hold = hold = trio.Event()
    agent.take_credentials(agent.authority)
    await controller.until(lambda: len(controller.hellos) == 2)
    return hold


@within(30)
async def test_with_new_credentials_the_new_stream_is_up_before_the_old_one_ends(tmp_path: Path) -> None:
    async with _rig(tmp_path) as (controller, agent):
        hold = await _hold_second_stream(controller, agent)
        assert controller.ended == 0
        first = controller.call
        hold.set()
        await controller.until(lambda: controller.call is not first and controller.ended == 1)
        await _works(controller)
        assert len(controller.hellos) == 2


@within(30)
async def test_a_stream_that_fails_to_take_over_leaves_the_old_one_at_work(tmp_path: Path) -> None:
    async with _rig(tmp_path) as (controller, agent):
        await controller.until(lambda: controller.call)
        with capture_logs() as logs:
            agent.take_credentials(CertificateAuthority())  # a stranger's: no listener of ours believes it
            while not any(entry["event"].startswith("controller.") for entry in logs):  # noqa: ASYNC110
                await trio.sleep(0.02)
        assert controller.ended == 0
        await _works(controller)
        agent.take_credentials(agent.authority)
        await controller.until(lambda: len(controller.hellos) == 2 and controller.ended == 1)
        await _works(controller)


@within(30)
async def test_between_hello_and_welcome_no_order_is_taken_on_either_stream(tmp_path: Path) -> None:
    """Or the list of runs in the hello would be untrue, and the controller would take a run for lost."""
    async with _rig(tmp_path) as (controller, agent):
        hold = await _hold_second_stream(controller, agent)
        first = controller.call
        signed = _sign(order := make_order(command="cat"))
        await controller.send_order(signed)
        with trio.move_on_after(0.5) as nothing:
            await controller.until(lambda: controller.heard)
        assert nothing.cancelled_caught
        hold.set()
        await controller.until(lambda: controller.call is not first and controller.ended == 1)
        assert list(agent.executor.known_runs()) == []
        # A controller sends it again to a node that did not say it has it.
        await controller.send_order(signed)
        assert (await controller.report_of(order.run_id)).exit_code == 0


@within(30)
async def test_the_old_stream_takes_what_waited_when_the_new_one_fails(tmp_path: Path) -> None:
    async with _rig(tmp_path) as (controller, agent):
        hold = await _hold_second_stream(controller, agent)
        await controller.send_order(_sign(order := make_order(command="cat")))
        controller.welcome = pb.AttachResponse(detach_ok=pb.DetachOk())  # no welcome
        hold.set()
        assert (await controller.report_of(order.run_id)).exit_code == 0
