"""Grants narrow an operator to commands and nodes, at once and for good; ``explain`` says which rule decides."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from lab.limits import within
from shovey_trio.config.operator import load_client_settings
from shovey_trio.core.errors import Code
from shovey_trio.demo.fleet import Fleet, NodeSpec, run_program
from shovey_trio.demo.operator import Operator, request
from shovey_trio.identity.layout import ClientDirectory
from shovey_trio.rpc.bridge import ClientTls, RpcError
from shovey_trio.rpc.client.client import ShoveyClient, open_client
from shovey_trio.v1 import job_service_pb2 as pb

pytestmark = pytest.mark.slow

NODES = ("web-1", "db-1")


@pytest.fixture(scope="module")
def fleet(keep_fleet: Any) -> Iterator[Fleet]:
    whitelist = {
        "restart": {"argv": ["true", "{name}"], "args": {"name": {"type": "enum", "values": ["a", "b"]}}},
        "sleep": "sleep 60",
    }

    def node(name: str) -> NodeSpec:
        role = name.partition("-")[0]
        return NodeSpec(name=name, whitelist=whitelist, tags={"role": role})

    with keep_fleet(lambda _: [node(name) for name in NODES], serf=False) as fleet:
        yield fleet


@asynccontextmanager
async def client_of(fleet: Fleet, name: str, role: str) -> AsyncIterator[ShoveyClient]:
    """A new user's client."""
    out = fleet.directory / f"client-{name}"
    await user(fleet, "cert", name, "--role", role, "--out", str(out))
    settings = load_client_settings(ClientDirectory(out).configuration, environ={})
    own = settings.read_certificate()
    tls = ClientTls(ca=own.ca, certificate=own.chain, private_key=own.private_key)
    async with open_client(settings.client.server, tls, server_name=settings.client.server_name) as client:
        yield client


async def user(fleet: Fleet, *words: str) -> str:
    return await run_program("shovey-trio", "user", *words, "--data-dir", str(fleet.data.root))


def denied(caught: pytest.ExceptionInfo[RpcError]) -> str:
    assert caught.value.code is Code.PERMISSION_DENIED
    return str(caught.value)


@within(90)
async def test_grants_narrow_start_and_cancel_to_what_they_cover(fleet: Fleet, operator: Operator) -> None:
    async with client_of(fleet, "ann", "operator") as ann:
        assert (await ann.start_job(request("restart", "db-1", dry_run=True))).targets
        await user(fleet, "grant", "ann", "--command", "re*", "--nodes", "web-*")
        assert await user(fleet, "grants", "ann") == "COMMAND  NODES\nre*      web-*\n"
        assert (await ann.start_job(request("restart", "web-1", dry_run=True))).targets
        with pytest.raises(RpcError) as caught:
            await ann.start_job(request("restart", "web-1", "db-1"))
        assert "no grant for 'restart' covers db-1" in denied(caught)
        with pytest.raises(RpcError) as caught:
            await ann.start_job(request("sleep", "web-1"))
        assert "no grant covers the command 'sleep'" in denied(caught)

        job = await operator.start("sleep", "web-1")
        with pytest.raises(RpcError) as caught:
            await ann.cancel_job(job)
        denied(caught)
        await user(fleet, "grant", "ann", "--command", "sleep", "--nodes", "web-1")
        assert (await ann.cancel_job(job)).cancelling == ["web-1"]
        await operator.finished(job)


@within(90)
@pytest.mark.parametrize("nodes", ["role=web", "name:web-* AND NOT role:db"])
async def test_a_grant_selects_its_nodes_as_a_job_does_and_a_refusal_says_what_would_help(
    fleet: Fleet, nodes: str
) -> None:
    name = f"cat{len(nodes)}"
    async with client_of(fleet, name, "operator") as cat:
        said = await user(fleet, "grant", name, "--command", "restart", "--nodes", nodes)
        assert said == f"user/{name}: restart on {nodes}, which 1 node is now\n"
        assert (await cat.start_job(request("restart", "web-1", dry_run=True))).targets
        with pytest.raises(RpcError) as caught:
            await cat.start_job(request("restart", "db-1"))
        help_ = f"an admin can grant it: shovey-trio user grant {name} --command restart --nodes NODES"
        assert denied(caught).endswith(help_)


@within(60)
async def test_a_role_that_is_not_enough_says_which_would_be(fleet: Fleet) -> None:
    async with client_of(fleet, "val", "viewer") as val:
        with pytest.raises(RpcError) as caught:
            await val.start_job(request("sleep", "web-1"))
        assert denied(caught).endswith(
            "takes the role admin or operator; an admin can give it: shovey-trio user cert val --role operator"
        )


@within(90)
async def test_last_grant_is_not_taken_by_accident(fleet: Fleet) -> None:
    async with client_of(fleet, "bob", "operator"):
        grant = ("bob", "--command", "sleep", "--nodes", "*")
        await user(fleet, "grant", *grant)
        with pytest.raises(Exception, match="--unrestrict"):
            await user(fleet, "revoke-grant", *grant)
        assert await user(fleet, "grants", "bob") == "COMMAND  NODES\nsleep    *\n"
        await user(fleet, "revoke-grant", *grant, "--unrestrict")
        assert await user(fleet, "grants", "bob") == ""


@within(90)
async def test_explain_names_the_rule_that_decides(fleet: Fleet, operator: Operator) -> None:
    async with client_of(fleet, "eve", "viewer") as eve:
        ask = operator.client.explain_run
        allowed = await ask(pb.ExplainRunRequest(command="restart", node="web-1", args={"name": "a"}))
        assert allowed.verdict == pb.VERDICT_ALLOWED
        assert [step.rule for step in allowed.steps] == ["role", "grant", "node", "route", "whitelist"]

        mismatch = await ask(pb.ExplainRunRequest(command="restart", node="web-1", args={"name": "c"}))
        assert verdicts(mismatch) == {"whitelist": "argument_mismatch: argument name is none of the permitted values"}
        absent = await ask(pb.ExplainRunRequest(command="rm", node="web-1"))
        assert verdicts(absent)["whitelist"].startswith("not_whitelisted: ")

        viewer = await ask(pb.ExplainRunRequest(command="sleep", node="web-1", as_user="eve"))
        assert verdicts(viewer) == {"role": "user/eve is viewer, who may not start jobs"}
        assert verdicts(await eve.explain_run(pb.ExplainRunRequest(command="sleep", node="web-1"))) == verdicts(viewer)
        with pytest.raises(RpcError) as caught:
            await eve.explain_run(pb.ExplainRunRequest(command="sleep", node="web-1", as_user="admin"))
        denied(caught)
        for unknown in (
            pb.ExplainRunRequest(command="sleep", node="no-such-node"),
            pb.ExplainRunRequest(command="sleep", node="web-1", as_user="nobody"),
        ):
            with pytest.raises(RpcError) as caught:
                await ask(unknown)
            assert caught.value.code is Code.NOT_FOUND


@within(90)
async def test_node_that_is_away_is_said_to_be_so_and_not_guessed(fleet: Fleet, operator: Operator) -> None:
    agent = fleet.nodes["db-1"].agent
    await agent.stop()
    try:
        answer = await operator.client.explain_run(pb.ExplainRunRequest(command="sleep", node="db-1"))
        [whitelist] = [step for step in answer.steps if step.rule == "whitelist"]
        assert (whitelist.verdict, whitelist.detail) == (pb.VERDICT_UNKNOWN, "the node is not attached")
    finally:
        with trio.CancelScope(deadline=trio.current_time() + 30, shield=True):
            await agent.start()
            await fleet.wait_up()


def verdicts(answer: pb.ExplainRunResponse) -> dict[str, str]:
    """The rules that refuse, with what they say."""
    assert answer.verdict == pb.VERDICT_REFUSED
    return {step.rule: step.detail for step in answer.steps if step.verdict == pb.VERDICT_REFUSED}
