"""A node that speaks for another one, in every way that nodes may speak: refused, without effect, and on record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from lab.limits import within
from shovey_agent.credentials import CredentialStore
from shovey_trio.core.errors import Code
from shovey_trio.demo.fleet import Fleet, NodeSpec, open_fleet
from shovey_trio.demo.operator import Operator, open_operator
from shovey_trio.identity.renewal import prove_possession
from shovey_trio.identity.requests import load_private_key, make_private_key, make_request
from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import Channel, open_channel
from shovey_trio.v1 import agent_service_pb2 as pb
from shovey_trio.v1 import job_pb2, order_pb2

from .conftest import NODE, ORGANIZATION, OTHER_NODE, Site, audit_records, call, credentials_tls, outcome
from .expected import GRPC, PROOF, REST

pytestmark = pytest.mark.slow

_MESSAGES: Final = tuple(field.name for field in pb.AttachRequest.DESCRIPTOR.oneofs_by_name["message"].fields)
# Of what a node may call, what is about no node at all.
_NOBODYS: Final = frozenset({"shovey_trio.v1.KeyService/GetSigningKeys"})
# In which test below each of the others is.
_SHOWN: Final = {
    "shovey_trio.v1.AgentService/Attach": "test_nothing_a_node_says_of_the_runs_of_another_changes_them",
    "shovey_trio.v1.AgentService/PushOutput": "test_nothing_a_node_says_of_the_runs_of_another_changes_them",
    "shovey_trio.v1.AgentService/Enroll": "test_a_token_for_one_node_enrols_no_other",
    "shovey_trio.v1.AgentService/Renew": "test_the_certificate_of_another_node_cannot_be_renewed",
}


def test_every_method_that_a_node_may_call_is_in_this_file() -> None:
    open_to_nodes = {path for path, who in GRPC.items() if "node" in who.split() or who == PROOF}
    assert open_to_nodes == _NOBODYS | _SHOWN.keys()
    assert all(name in globals() for name in _SHOWN.values())


@within(100)
async def test_nothing_a_node_says_of_the_runs_of_another_changes_them(tmp_path: Path) -> None:
    spec = NodeSpec(name=NODE, whitelist={"hello": "echo hello", "sleep": "sleep 600"})
    async with open_fleet(tmp_path, [spec], serf=False) as fleet, open_operator(fleet) as operator:
        await fleet.enroll(OTHER_NODE, fleet.directory / OTHER_NODE)
        ended = (await operator.finished(job := await operator.start("hello", NODE))).runs[NODE]
        alive = await operator.reached(live_job := await operator.start("sleep", NODE), NODE, "running")
        jobs = (job, live_job)
        before = [await _picture(operator, job_id) for job_id in jobs]
        async with open_channel(fleet.listeners["control"], credentials_tls(fleet, OTHER_NODE)) as channel:
            said = await _speak_for(channel, _instance(fleet, OTHER_NODE), [alive.id, ended.id])
            said += await _push_for(channel, [alive.id, ended.id])
        assert [await _picture(operator, job_id) for job_id in jobs] == before
        assert fleet.noise() == []
        # It writes what it has noted when it ends.
        await fleet.controller.stop()
        records = [record for record in audit_records(fleet) if record["action"] == "run.foreign"]
        assert {(record["principal"], record["outcome"]) for record in records} == {(f"node/{OTHER_NODE}", "refused")}
        assert sum(record["detail"].get("further", 1) for record in records) == said
        assert {record["method"].rpartition("/")[2] for record in records} == {"Attach", "PushOutput"}
        assert {record["subject"] for record in records if record["subject"]} <= {f"run/{alive.id}", f"run/{ended.id}"}


@within(60)
async def test_a_stream_is_its_own_nodes_whatever_instance_it_names(site: Site) -> None:
    async with open_channel(site.fleet.listeners["control"], site.tls[OTHER_NODE]) as channel:
        hello = pb.AttachHello(agent_instance=_instance(site.fleet, NODE))
        assert await call(channel, methods.ATTACH, pb.AttachRequest(hello=hello)) is Code.FAILED_PRECONDITION


@within(60)
async def test_a_token_for_one_node_enrols_no_other(site: Site) -> None:
    async with site.fleet.open_client() as client:
        token = (await client.create_enrollment_token("node-c")).token
    async with open_channel(site.fleet.listeners["enroll"], site.tls[OTHER_NODE]) as channel:
        for node in (NODE, OTHER_NODE):
            request = pb.EnrollRequest(
                token=token,
                organization=ORGANIZATION,
                node=node,
                csr=make_request(make_private_key()),
                agent_instance="abc",
            )
            assert await call(channel, methods.ENROLL, request) is Code.PERMISSION_DENIED


@within(60)
async def test_the_certificate_of_another_node_cannot_be_renewed(site: Site) -> None:
    """A certificate is no secret: whoever has met the node has it."""
    theirs = site.tls[NODE].certificate
    own = load_private_key(CredentialStore(site.fleet.directory / OTHER_NODE).load().private_key)
    csr = make_request(own)
    request = pb.RenewRequest(certificate=theirs, csr=csr, proof=prove_possession(own, csr))
    async with open_channel(site.fleet.listeners["enroll"], site.tls[OTHER_NODE]) as channel:
        assert await call(channel, methods.RENEW, request) is Code.UNAUTHENTICATED


@within(60)
@pytest.mark.parametrize("route", [route for route, who in REST.items() if who == "node"])
async def test_a_node_reports_for_itself_alone_over_rest(site: Site, route: str) -> None:
    method, template = route.split()
    path = template.replace("{job}", site.job).replace("{node}", NODE)
    body = {"status": "succeeded", "output": "x", "output_type": "stdout", "is_last": True, "seq": 0}
    before = await site.chef["admin"].get(f"/shovey/jobs/{site.job}/{NODE}")
    for other in (path, path.replace(NODE, "node%2da"), f"/organizations/{ORGANIZATION}{path}"):
        answer = await site.chef[OTHER_NODE].request(method, other, body)
        assert outcome(answer) == "denied"
        assert OTHER_NODE in answer.error
    after = await site.chef["admin"].get(f"/shovey/jobs/{site.job}/{NODE}")
    # Without the headers: one of them is the time.
    assert (after.status, after.body) == (before.status, before.body)


# --- what is said ---------------------------------------------------------------------------------------------


def _instance(fleet: Fleet, name: str) -> str:
    return CredentialStore(fleet.directory / name).load().agent_instance


async def _picture(operator: Operator, job_id: str) -> tuple[bytes, bytes, bytes]:
    """Job, run and output as they are."""
    job, run = await operator.client.get_job(job_id), await operator.client.get_run(job_id, NODE)
    return job.SerializeToString(), run.SerializeToString(), await operator.output(job_id, NODE)


def _about(run_id: str) -> Iterator[pb.AttachRequest]:
    """Every message of the contract that is about a run, about this one; taken from the contract itself."""
    for name in _MESSAGES:
        message = pb.AttachRequest()
        part = getattr(message, name)
        part.SetInParent()
        if "run_id" not in part.DESCRIPTOR.fields_by_name:
            continue
        part.run_id = run_id
        if name == "report":
            part.outcome, part.exit_code = pb.REPORT_OUTCOME_EXITED, 0
        if name == "refused":
            part.reason, part.kind = "not_whitelisted", order_pb2.ORDER_KIND_START
        yield message


async def _speak_for(channel: Channel, instance: str, run_ids: list[str]) -> int:
    """Says everything of these runs, the last of which has ended; how often a run was named."""
    said = len(run_ids)
    async with channel.stream(methods.ATTACH) as stream:
        known = [pb.KnownRun(run_id=run_id, state=pb.KNOWN_RUN_STATE_RUNNING) for run_id in run_ids]
        await stream.send(pb.AttachRequest(hello=pb.AttachHello(agent_instance=instance, runs=known)))
        welcome = (await stream.receive()).welcome
        assert list(welcome.positions) == []
        assert welcome.pending_orders == 0
        for run_id in run_ids:
            for message in _about(run_id):
                await stream.send(message)
                said += 1
        # Messages are taken in their order, and each of the last run is answered: forget it.
        for _ in _about(run_ids[-1]):
            assert (await stream.receive()).forget.run_id == run_ids[-1]
    return said


async def _push_for(channel: Channel, run_ids: list[str]) -> int:
    async with channel.stream(methods.PUSH_OUTPUT) as stream:
        for run_id in run_ids:
            chunk = job_pb2.OutputChunk(stream=job_pb2.OUTPUT_STREAM_STDOUT, position=0, data=b"forged")
            await stream.send(pb.PushOutputRequest(run_id=run_id, chunk=chunk))
            assert (await stream.receive()).closed
    return len(run_ids)
