"""Who may be a node or a client: enrolment, certificates, removal – on real programs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from lab.limits import within
from lab.rpc_certificates import CertificateAuthority
from shovey_agent.credentials import Credentials, CredentialStore
from shovey_trio.core.errors import Code, Exit
from shovey_trio.core.trust.enrollment import JoinTicket, encode_join
from shovey_trio.demo.commands import commands
from shovey_trio.demo.fleet import Fleet, NodeSpec, run_program
from shovey_trio.demo.operator import Operator
from shovey_trio.demo.processes import ManagedProcess, ProcessFailed, program
from shovey_trio.identity.requests import make_private_key, make_request
from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import Channel, ClientTls, RpcError, open_channel
from shovey_trio.v1 import agent_service_pb2, job_pb2, node_service_pb2

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fleet(keep_fleet: Any) -> Iterator[Fleet]:
    def nodes(directory: Path) -> list[NodeSpec]:
        return [
            NodeSpec(name=name, whitelist=commands(str(directory)), settings={"reconnect.delay_max": "0.5s"})
            for name in ("a", "b")
        ]

    with keep_fleet(nodes, serf=False) as fleet:
        yield fleet


# -- tokens


@within(60)
async def test_the_command_line_enrols_a_node_once(fleet: Fleet, tmp_path: Path) -> None:
    join = await run_program("shovey-trio", "node", "token", "c", "-q", "--data-dir", str(fleet.data.root))
    await run_program("shovey-agent", "enroll", join.strip(), "--state-dir", str(tmp_path / "c"))
    with pytest.raises(ProcessFailed, match="INVALID_ENROLLMENT_TOKEN"):
        await run_program("shovey-agent", "enroll", join.strip(), "--state-dir", str(tmp_path / "other"))
    assert not (tmp_path / "other" / "credentials").exists()


@within(60)
@pytest.mark.parametrize("fault", ["expired", "foreign", "made-up", "other-organization"])
async def test_a_token_that_is_not_good_for_this_name_now_is_refused(fleet: Fleet, fault: str) -> None:
    ticket = await fleet.join_ticket("c")
    match fault:
        case "expired":
            async with fleet.open_client() as client:
                made = await client.create_enrollment_token("c", valid_for=1.0)
            await trio.sleep_until(
                trio.current_time() + max(0.0, made.expires_at.ToMicroseconds() / 1e6 + 0.05 - time.time())
            )
            refused = await _enroll(fleet, ticket, token=made.token)
        case "foreign":
            refused = await _enroll(fleet, ticket, node="d")
        case "made-up":
            refused = await _enroll(fleet, replace(ticket, secret=bytes(32)))
        case _:
            refused = await _enroll(fleet, ticket, organization="elsewhere")
    assert refused is not None
    assert (refused.code, refused.reason) == (Code.PERMISSION_DENIED, "INVALID_ENROLLMENT_TOKEN")


@within(60)
async def test_a_token_whose_certificate_never_arrived_serves_the_same_instance_and_key_alone(fleet: Fleet) -> None:
    ticket = await fleet.join_ticket("e")
    key, other = make_private_key(), make_private_key()
    assert await _enroll(fleet, ticket, csr=make_request(key), instance="one") is None
    for wrong_key, instance in ((other, "one"), (key, "two")):
        refused = await _enroll(fleet, ticket, csr=make_request(wrong_key), instance=instance)
        assert refused is not None
        assert refused.reason == "INVALID_ENROLLMENT_TOKEN"
    assert await _enroll(fleet, ticket, csr=make_request(key), instance="one") is None
    # On record both times, with the key.
    found = await run_program("shovey-trio", "audit", "export", "--data-dir", str(fleet.data.root))
    records = [json.loads(line)["detail"] for line in found.splitlines() if '"node.enrolled"' in line]
    keys = [detail["key"] for detail in records if detail["agent_instance"] == "one"]
    assert len(keys) == 2
    assert keys[0] == keys[1]


@within(60)
async def test_a_bad_certificate_request_does_not_use_the_token_up(fleet: Fleet) -> None:
    ticket = await fleet.join_ticket("c")
    refused = await _enroll(fleet, ticket, csr=b"garbage")
    assert refused is not None
    assert refused.reason == "INVALID_CERTIFICATE_REQUEST"
    assert await _enroll(fleet, ticket) is None


# -- certificates


@within(60)
async def test_a_certificate_of_another_authority_opens_no_connection(fleet: Fleet) -> None:
    server, ours, _ = fleet.client_tls()
    foreign = CertificateAuthority().client_tls("shovey://default/user/admin")
    tls = ClientTls(ca=ours.ca, certificate=foreign.certificate, private_key=foreign.private_key)
    for wrong in (tls, ClientTls(ca=ours.ca)):
        async with open_channel(server, wrong) as channel:
            with pytest.raises(RpcError) as caught:
                await channel.unary(methods.LIST_NODES, node_service_pb2.ListNodesRequest())
        assert caught.value.code in {Code.UNAVAILABLE, Code.UNAUTHENTICATED}


@within(60)
async def test_a_controller_of_another_authority_is_not_believed(fleet: Fleet) -> None:
    server, ours, _ = fleet.client_tls()
    tls = ClientTls(ca=CertificateAuthority().pem, certificate=ours.certificate, private_key=ours.private_key)
    async with open_channel(server, tls) as channel:
        with pytest.raises(RpcError) as caught:
            await channel.unary(methods.LIST_NODES, node_service_pb2.ListNodesRequest())
    assert caught.value.code is Code.UNAVAILABLE


# -- instances


@within(60)
async def test_enrolling_a_node_again_voids_what_it_was_before(fleet: Fleet, operator: Operator) -> None:
    node = fleet.nodes["b"]
    before = (await operator.client.get_node("b")).agent_instance
    old = CredentialStore(node.state_dir).load()
    await fleet.enroll("b", fleet.directory / "b-again")
    after = (await operator.client.get_node("b")).agent_instance
    assert after != before
    # The stream of the old instance was cut, and its certificate opens nothing any more.
    await _logged(node.agent, "controller.refused")
    assert "revoked" in node.agent.tail()
    with pytest.raises(RpcError) as caught:
        await _attach(fleet, old, _hello(before))
    assert caught.value.code is Code.UNAUTHENTICATED
    # The agent is still there: it may be given new credentials and carries on.
    assert node.agent.pid is not None
    await node.agent.stop()
    await fleet.enroll("b", node.state_dir, again=True)
    await node.agent.start()
    await fleet.wait_up()
    assert (await operator.run("true", "b")).states() == {"b": "succeeded"}


@within(60)
async def test_an_agent_with_a_copied_certificate_and_another_state_directory_is_told_so(fleet: Fleet) -> None:
    with pytest.raises(RpcError) as caught:
        await _attach(fleet, CredentialStore(fleet.nodes["a"].state_dir).load(), _hello("another-instance"))
    assert (caught.value.code, caught.value.reason) == (Code.FAILED_PRECONDITION, "NODE_PROTOCOL")
    assert "enrol it again" in caught.value.message


@within(60)
async def test_a_lost_state_directory_is_a_clear_end_of_the_agent(fleet: Fleet, tmp_path: Path) -> None:
    whitelist = fleet.nodes["a"].whitelist
    agent = ManagedProcess(
        [
            *program("shovey-agent"),
            *("run", "--state-dir", str(tmp_path / "lost"), "--whitelist", str(whitelist)),
            *("--set", "serf.enabled=false"),
        ],
        log=tmp_path / "log",
    )
    await agent.start()
    assert await agent.wait() not in {0, Exit.INTERNAL.value}
    assert "enroll" in agent.tail()


@within(60)
async def test_a_removed_node_is_cut_off_and_its_past_stays(fleet: Fleet, operator: Operator, tmp_path: Path) -> None:
    spec = NodeSpec(name="e", whitelist=commands(str(fleet.directory)), settings={"reconnect.delay_max": "0.5s"})
    node = await fleet.add_node(spec, serf=None)
    await node.agent.start()
    await fleet.wait_up()
    past = await operator.run("hello", "e")
    await operator.client.remove_node("e")
    await _logged(node.agent, "controller.refused")
    with pytest.raises(RpcError) as caught:
        await operator.client.get_node("e")
    assert caught.value.code is Code.NOT_FOUND
    with pytest.raises(RpcError) as caught:
        await operator.start("true", "e")
    assert caught.value.reason == "UNKNOWN_NODES"
    assert (await operator.finished(past.job.id)).states() == {"e": "succeeded"}
    assert await operator.output(past.job.id, "e") == b"to stdout\n"
    await node.agent.stop()
    del fleet.nodes["e"]


# -- what a node may say


@within(60)
@pytest.mark.parametrize("fault", ["no-hello", "tags", "huge-tag", "garbage", "oversized"])
async def test_a_node_that_breaks_the_protocol_ends_its_own_stream_alone(
    fleet: Fleet, operator: Operator, fault: str
) -> None:
    credentials = CredentialStore(fleet.nodes["a"].state_dir).load()
    message = _hello(credentials.agent_instance)
    match fault:
        case "no-hello":
            message = agent_service_pb2.AttachRequest(detach=agent_service_pb2.Detach())
        case "tags":
            message.hello.tags.update({f"tag-{n}": "x" for n in range(65)})
        case "huge-tag":
            message.hello.tags["tag"] = "x" * 100_000
        case "oversized":
            message.hello.boot_id = "x" * 5_000_000
        case _:
            message.hello.ClearField("agent_instance")
    with pytest.raises(RpcError) as caught:
        await _attach(fleet, credentials, message)
    assert caught.value.code in {Code.FAILED_PRECONDITION, Code.RESOURCE_EXHAUSTED}
    assert (await operator.run("true", "a", "b")).states() == {"a": "succeeded", "b": "succeeded"}


@within(60)
async def test_a_node_can_speak_of_its_own_runs_only(fleet: Fleet, operator: Operator) -> None:
    job_id = await operator.start("sleep", "a")
    run = await operator.reached(job_id, "a", "running")
    await fleet.nodes["b"].agent.stop()
    credentials = CredentialStore(fleet.nodes["b"].state_dir).load()
    async with _node_channel(fleet, credentials) as channel:
        async with channel.stream(methods.ATTACH) as stream:
            await stream.send(_hello(credentials.agent_instance))
            await stream.receive()
            report = agent_service_pb2.RunReport(
                run_id=run.id, outcome=agent_service_pb2.REPORT_OUTCOME_EXITED, exit_code=0
            )
            await stream.send(agent_service_pb2.AttachRequest(report=report))
        async with channel.stream(methods.PUSH_OUTPUT) as stream:
            push = agent_service_pb2.PushOutputRequest(run_id=run.id)
            push.chunk.stream = job_pb2.OUTPUT_STREAM_STDOUT
            push.chunk.data = b"lies"
            await stream.send(push)
            answer = await stream.receive()
            assert answer.closed
    assert (await operator.client.get_run(job_id, "a")).state == run.state
    assert await operator.output(job_id, "a") == b""
    await operator.client.cancel_job(job_id)
    assert (await operator.finished(job_id)).states() == {"a": "cancelled"}
    await fleet.nodes["b"].agent.start()
    await fleet.wait_up()


async def _enroll(
    fleet: Fleet,
    ticket: JoinTicket,
    *,
    node: str = "",
    organization: str = "",
    token: str = "",
    csr: bytes = b"",
    instance: str = "instance-1",
) -> RpcError | None:
    """Enrols with what is given instead of what the ticket says; the refusal, if it is one."""
    assert encode_join(ticket)
    tls = ClientTls(ca=fleet.data.ca_certificate.read_bytes())
    request = agent_service_pb2.EnrollRequest(
        token=token or ticket.token,
        organization=organization or ticket.organization,
        node=node or ticket.node,
        csr=csr or make_request(make_private_key()),
        agent_instance=instance,
    )
    async with open_channel(ticket.enroll_address, tls) as channel:
        try:
            await channel.unary(methods.ENROLL, request)
        except RpcError as error:
            return error
    return None


async def _attach(fleet: Fleet, credentials: Credentials, first: agent_service_pb2.AttachRequest) -> None:
    """Opens a control stream as a node, says one thing and waits for the answer."""
    async with _node_channel(fleet, credentials) as channel, channel.stream(methods.ATTACH) as stream:
        await stream.send(first)
        await stream.receive()


def _node_channel(fleet: Fleet, credentials: Credentials) -> AbstractAsyncContextManager[Channel]:
    tls = ClientTls(
        ca=credentials.ca_certificates,
        certificate=credentials.certificate_chain,
        private_key=credentials.private_key,
    )
    return open_channel(fleet.listeners["control"], tls)


def _hello(agent_instance: str) -> agent_service_pb2.AttachRequest:
    hello = agent_service_pb2.AttachHello(agent_instance=agent_instance, agent_version="test")
    hello.agent_time.FromMicroseconds(int(time.time() * 1e6))
    return agent_service_pb2.AttachRequest(hello=hello)


async def _logged(process: ManagedProcess, event: str) -> None:
    while event not in process.log.read_text():
        process.check()
        await trio.sleep(0.05)
