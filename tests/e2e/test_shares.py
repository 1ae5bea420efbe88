"""Who can hinder whom: one caller that takes all it can get, and an honest one beside it, over TLS."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from grpc_health.v1 import health_pb2

from lab.limits import within
from shovey_agent.credentials import CredentialStore
from shovey_trio.core.errors import Code
from shovey_trio.demo.commands import commands
from shovey_trio.demo.fleet import Fleet, NodeSpec
from shovey_trio.demo.operator import Operator
from shovey_trio.identity.renewal import prove_possession
from shovey_trio.identity.requests import make_private_key, make_request, private_key_pem
from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import Channel, ClientTls, Method, RpcError, open_channel
from shovey_trio.rpc.bridge.methods import service_methods
from shovey_trio.rpc.convert import timestamp
from shovey_trio.v1 import admin_service_pb2, job_service_pb2, node_pb2
from shovey_trio.v1 import agent_service_pb2 as pb

pytestmark = pytest.mark.slow

WATCH_HEALTH = service_methods(health_pb2.DESCRIPTOR.services_by_name["Health"])["Watch"]
# A fortieth of them is the share of an address in streams.
STRANGERS, OF_AN_ADDRESS = 400, 10
WATCHERS, OF_A_VIEWER = 20, 5
MAX_OUTPUT, MUCH = 100_000, 300_000


@pytest.fixture(scope="module")
def fleet(keep_fleet: Any) -> Iterator[Fleet]:
    settings = {
        "limits.max_stranger_calls": str(STRANGERS),
        "limits.max_run_output": str(MAX_OUTPUT),
        "limits.max_watchers": str(WATCHERS),
        "limits.max_watchers_per_caller": str(OF_A_VIEWER),
    }

    def nodes(directory: Path) -> Sequence[NodeSpec]:
        much = f"head -c {MUCH} /dev/zero | tr '\\0' x"
        return [NodeSpec(name="a", whitelist={**commands(str(directory)), "much": {"argv": ["sh", "-c", much]}})]

    with keep_fleet(nodes, serf=False, settings=settings) as fleet:
        yield fleet


@within(60)
async def test_a_node_with_200_silent_control_streams_keeps_no_agent_out(fleet: Fleet) -> None:
    for name in ("silent", "honest"):
        await fleet.enroll(name, fleet.directory / name)
    tls = _node_tls(fleet, "silent")
    async with _channels(fleet, tls, 4) as channels, _held(channels, methods.ATTACH, 200) as refused:
        while sum(refused.values()) < 190:  # noqa: ASYNC110  # nothing else tells
            await trio.sleep(0.02)
        assert set(refused) == {Code.RESOURCE_EXHAUSTED}
        began = trio.current_time()
        await _attach(fleet, "honest")
        assert trio.current_time() - began <= 2.0


@within(60)
async def test_one_viewer_cannot_take_every_watchers_place(fleet: Fleet, operator: Operator) -> None:
    job_id = await operator.start("sleep", "a")
    viewer = await _user_tls(fleet, operator, "greedy")
    watch = job_service_pb2.WatchJobRequest(job_id=job_id)
    async with _channels(fleet, viewer, 2) as channels, _held(channels, methods.WATCH_JOB, WATCHERS, watch) as refused:
        while sum(refused.values()) < WATCHERS - OF_A_VIEWER:  # noqa: ASYNC110
            await trio.sleep(0.02)
        async with operator.client.watch_job(job_id) as events:
            assert (await events.receive()).snapshot.job.id == job_id
        assert refused == {Code.RESOURCE_EXHAUSTED: WATCHERS - OF_A_VIEWER}
    await operator.client.cancel_job(job_id)
    await operator.finished(job_id)


@within(60)
async def test_a_stranger_cannot_hold_more_than_its_share_of_streams_and_keeps_no_enrolment_out(fleet: Fleet) -> None:
    ca = ClientTls(ca=fleet.client_tls()[1].ca)
    ask = health_pb2.HealthCheckRequest()
    channels_ = _channels(fleet, ca, 3, listener="enroll")
    async with channels_ as channels, _held(channels, WATCH_HEALTH, 300, ask) as refused:
        while sum(refused.values()) < 300 - OF_AN_ADDRESS:  # noqa: ASYNC110
            await trio.sleep(0.02)
        await fleet.enroll("beside", fleet.directory / "beside")
        assert refused == {Code.RESOURCE_EXHAUSTED: 300 - OF_AN_ADDRESS}


@within(60)
async def test_what_is_invalid_keeps_no_enrolment_and_no_renewal_out(fleet: Fleet) -> None:
    ca = ClientTls(ca=fleet.client_tls()[1].ca)
    refused: Counter[str] = Counter()

    async def ask_for_nothing(channel: Channel) -> None:
        try:
            await channel.unary(methods.ENROLL, pb.EnrollRequest())
        except RpcError as error:
            refused[error.reason] += 1

    async with _channels(fleet, ca, 1, listener="enroll") as [channel], trio.open_nursery() as nursery:
        # More than the address may fail in a minute, and it is that of the honest ones.
        while refused["TOO_MANY_FAILURES"] < 40:
            await ask_for_nothing(channel)
        for _ in range(5):
            nursery.start_soon(ask_for_nothing, channel)
        await fleet.enroll("right", fleet.directory / "right")
        right = _renewal(fleet, "right")
        assert (await channel.unary(methods.RENEW, right)).certificate_chain
        right.proof = b"wrong"
        with pytest.raises(RpcError) as caught:
            await channel.unary(methods.RENEW, right)
        assert caught.value.reason == "UNAUTHENTICATED"


@within(60)
async def test_a_run_stores_no_more_than_the_controller_takes_and_says_what_is_missing(
    fleet: Fleet, operator: Operator
) -> None:
    finished = await operator.run("much", "a")
    run = await operator.client.get_run(finished.job.id, "a")
    assert run.stdout_bytes + run.stderr_bytes == MAX_OUTPUT
    assert (finished.states(), run.dropped_bytes) == ({"a": "succeeded"}, MUCH - MAX_OUTPUT)
    assert await operator.output(finished.job.id, "a") == b"x" * MAX_OUTPUT


@asynccontextmanager
async def _held(
    channels: Sequence[Channel], method: Method[Any, Any], count: int, *requests: Any
) -> AsyncIterator[Counter[Code]]:
    """So many streams that are held for the block; those that are refused are counted by status."""
    refused: Counter[Code] = Counter()

    async def hold(channel: Channel) -> None:
        try:
            async with channel.stream(method, *requests) as stream:
                async for _ in stream:
                    pass
        except RpcError as error:
            refused[error.code] += 1

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(hold, channels[number % len(channels)])
        yield refused
        nursery.cancel_scope.cancel(reason="enough")


@asynccontextmanager
async def _channels(
    fleet: Fleet, tls: ClientTls, count: int, *, listener: str = "control"
) -> AsyncIterator[list[Channel]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_channel(fleet.listeners[listener], tls)) for _ in range(count)]


async def _attach(fleet: Fleet, node: str) -> None:
    """What an agent does until it is welcome, from the first packet on."""
    credentials = CredentialStore(fleet.directory / node).load()
    async with (
        open_channel(fleet.listeners["control"], _node_tls(fleet, node)) as channel,
        channel.stream(methods.ATTACH) as stream,
    ):
        hello = pb.AttachHello(
            agent_instance=credentials.agent_instance,
            link=node_pb2.LINK_MODE_ATTACHED,
            agent_time=timestamp(time.time()),
        )
        await stream.send(pb.AttachRequest(hello=hello))
        assert (await stream.receive()).welcome.epoch


def _renewal(fleet: Fleet, node: str) -> pb.RenewRequest:
    credentials = CredentialStore(fleet.directory / node).load()
    key = load_pem_private_key(credentials.private_key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    csr = make_request(make_private_key())
    return pb.RenewRequest(certificate=credentials.certificate_chain, csr=csr, proof=prove_possession(key, csr))


def _node_tls(fleet: Fleet, node: str) -> ClientTls:
    credentials = CredentialStore(fleet.directory / node).load()
    return ClientTls(
        ca=credentials.ca_certificates,
        certificate=credentials.certificate_chain,
        private_key=credentials.private_key,
    )


async def _user_tls(fleet: Fleet, operator: Operator, name: str) -> ClientTls:
    key = make_private_key()
    made = await operator.client.create_user_certificate(
        name, role=admin_service_pb2.ROLE_VIEWER, csr=make_request(key)
    )
    return ClientTls(ca=fleet.client_tls()[1].ca, certificate=made.certificate_chain, private_key=private_key_pem(key))
