"""What the daemon makes of an agent that attaches: how wrong its clock is, and whether there is room for it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from lab.faults import FaultBench
from lab.limits import within
from lab.signing import key_set_of
from shovey_agent.credentials import CredentialStore
from shovey_agent.desk.epoch import JobEpochs
from shovey_agent.desk.gate import OrderGate, Refusal
from shovey_agent.desk.nonces import open_nonces
from shovey_agent.desk.whitelist_file import WhitelistFile
from shovey_trio.cli.controller.doctor_checks import Status, check_node_clocks
from shovey_trio.cli.operator.node_list import skew_word
from shovey_trio.core.jobs.model import Node
from shovey_trio.core.trust.orders import NodeIdentity, RefusalReason
from shovey_trio.demo.fleet import NodeSpec, write_whitelist
from shovey_trio.identity.signing_keys import make_signing_key
from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import ClientTls, RpcError, open_channel
from shovey_trio.rpc.convert import signed_order_value, timestamp
from shovey_trio.v1 import agent_service_pb2 as pb
from shovey_trio.v1 import node_pb2
from tests.faults.test_same_order import make_orders

from .conftest import OpenBench


@asynccontextmanager
async def attached(
    bench: FaultBench, node: str, *, clock: float = 0.0, clock_after: float | None = None
) -> AsyncIterator[pb.AttachWelcome]:
    """A stream of an agent that says hello, with its clock so many seconds off, and nothing else; its welcome.

    With ``clock_after`` it says its time once more after the welcome, with its clock so many seconds off then.
    """
    credentials = CredentialStore(bench.fleet.nodes[node].state_dir).load()
    tls = ClientTls(
        ca=credentials.ca_certificates,
        certificate=credentials.certificate_chain,
        private_key=credentials.private_key,
    )
    async with open_channel(bench.fleet.client_tls()[0], tls) as channel, channel.stream(methods.ATTACH) as stream:
        hello = pb.AttachHello(
            agent_instance=credentials.agent_instance,
            link=node_pb2.LINK_MODE_ATTACHED,
            agent_time=timestamp(time.time() + clock),
            clock_follows=clock_after is not None,
        )
        await stream.send(pb.AttachRequest(hello=hello))
        welcome = (await stream.receive()).welcome
        if clock_after is not None:
            said = pb.AgentClock(agent_time=timestamp(time.time() + clock_after))
            await stream.send(pb.AttachRequest(clock=said))
        yield welcome


@pytest.mark.slow
@within(60)
async def test_a_nodes_clock_is_measured_when_it_attaches_and_shown(bench_of: OpenBench) -> None:
    async with bench_of(nodes=("web-1",)) as bench, bench.open_client() as client:
        while not (right := await client.get_node("web-1")).HasField("clock_skew"):
            await trio.sleep(0.02)
        # A busy machine may take its time between the reading of the clock and the controller's.
        assert abs(right.clock_skew.ToMicroseconds()) < 30_000_000
        await bench.fleet.nodes["web-1"].agent.stop()
        async with attached(bench, "web-1", clock=-1000.0):
            wrong = await client.get_node("web-1")
        assert -1030 < wrong.clock_skew.ToMicroseconds() / 1e6 < -995
        # It is stored with the node: the next start knows it.
        await bench.kill_daemon()
        await bench.start_daemon()
        assert (await client.get_node("web-1")).clock_skew == wrong.clock_skew


@pytest.mark.slow
@within(60)
async def test_a_hello_that_waited_is_no_slow_clock(bench_of: OpenBench) -> None:
    async with bench_of(nodes=("web-1",)) as bench, bench.open_client() as client:
        while not (before := await client.get_node("web-1")).HasField("clock_skew"):
            await trio.sleep(0.02)
        await bench.fleet.nodes["web-1"].agent.stop()
        async with attached(bench, "web-1", clock=-1000.0, clock_after=500.0):
            while (after := await client.get_node("web-1")).clock_skew == before.clock_skew:
                await trio.sleep(0.02)
        # The first that is noted of this stream is what the agent said after the welcome.
        assert 465 < after.clock_skew.ToMicroseconds() / 1e6 < 505


@pytest.mark.slow
@within(60)
async def test_an_agent_too_many_is_refused_with_the_bound_and_when_to_come_back(bench_of: OpenBench) -> None:
    async with bench_of(nodes=("web-1",), settings={"limits.max_attached": "1"}) as bench:
        await bench.fleet.add_node(NodeSpec(name="web-2"), serf=None)
        with pytest.raises(RpcError) as caught:
            async with attached(bench, "web-2"):
                pass
        assert caught.value.reason == "OVERLOADED"
        assert caught.value.metadata["limit"] == "max_attached"
        assert float(caught.value.metadata["retry_after_s"]) > 0
        # The same node again is no further agent.
        async with attached(bench, "web-1") as welcome:
            assert welcome.epoch


@pytest.mark.parametrize(("skew", "word"), [(None, ""), (0.4, ""), (-0.9, ""), (2.04, "+2.0s"), (-1000.0, "-1000.0s")])
def test_a_clock_that_is_off_is_told_in_a_word(skew: float | None, word: str) -> None:
    node = node_pb2.Node()
    if skew is not None:
        node.clock_skew.FromMicroseconds(round(skew * 1e6))
    assert skew_word(node) == word


@pytest.mark.parametrize(
    ("skew", "status"), [(None, Status.OK), (0.5, Status.OK), (-5, Status.WARN), (1000, Status.FAIL)]
)
def test_doctor_names_nodes_whose_clock_is_off(skew: float | None, status: Status) -> None:
    node = Node(name="web-1", organization="default", enrolled_at=1.0, presence_since=1.0, clock_skew=skew)
    [finding] = check_node_clocks([node])
    assert finding.status is status
    assert ("web-1" in finding.message) == (status is not Status.OK)


@pytest.mark.parametrize(("clock", "reason"), [(-3600.0, RefusalReason.FUTURE_DATED), (3600.0, RefusalReason.EXPIRED)])
async def test_an_order_that_time_forbids_is_refused_with_the_clocks_it_was_judged_by(
    tmp_path: Path, clock: float, reason: RefusalReason
) -> None:
    directory = tmp_path
    write_whitelist(directory / "whitelist", {})
    key = make_signing_key(1.0)
    nonces = await open_nonces(directory / "nonces")
    gate = OrderGate(
        identity=NodeIdentity(organization="default", node="web-1", agent_instance="instance"),
        keys=key_set_of("default", key),
        nonces=nonces,
        voided=nonces,
        epochs=JobEpochs(),
        whitelist=WhitelistFile(directory / "whitelist"),
    )
    order = signed_order_value(make_orders(key)[0])
    refusal = gate.believe(order, controller_now=time.time() + clock)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is reason
    assert f"this node's clock is {-clock:+.1f} s off" in refusal.detail
