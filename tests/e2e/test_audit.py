"""The audit log of a real controller: what was acknowledged is in it, what was refused too, and nothing is found out
of it that was a secret."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from lab.limits import within
from shovey_trio.core.errors import Code
from shovey_trio.demo.commands import commands
from shovey_trio.demo.fleet import ORGANIZATION, Fleet, NodeSpec, run_program
from shovey_trio.demo.operator import Operator
from shovey_trio.identity.requests import make_private_key, make_request
from shovey_trio.identity.signing_keys import SigningKeyFile
from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import ClientTls, RpcError, open_channel
from shovey_trio.v1 import agent_service_pb2

pytestmark = pytest.mark.slow

Record = dict[str, Any]
LIMIT = 6


@pytest.fixture(scope="module")
def fleet(keep_fleet: Any) -> Iterator[Fleet]:
    def nodes(directory: Path) -> list[NodeSpec]:
        return [NodeSpec(name=name, whitelist=commands(str(directory))) for name in ("a", "b")]

    with keep_fleet(nodes, serf=False, settings={"limits.failed_auth_per_minute": str(LIMIT)}) as fleet:
        yield fleet


async def audit(fleet: Fleet, *words: str) -> str:
    return await run_program("shovey-trio", "audit", *words, "--data-dir", str(fleet.data.root))


async def records(fleet: Fleet) -> list[Record]:
    return [json.loads(line) for line in (await audit(fleet, "export")).splitlines()]


async def found(fleet: Fleet, holds: Callable[[Record], bool]) -> Record:
    """The first record of which it holds, waited for: what nobody acknowledged is written in its own time."""
    while True:
        for record in await records(fleet):
            if holds(record):
                return record
        await trio.lowlevel.checkpoint()


@within(90)
async def test_acknowledged_job_is_on_record_with_who_by_which_rule_which_key_and_how_it_ended(
    fleet: Fleet, operator: Operator
) -> None:
    done = await operator.run("true")
    subject = f"job/{done.job.id}"
    started, ended = [record for record in await records(fleet) if record["subject"] == subject]
    assert started["action"] == "job.started"
    assert (started["principal"], started["peer"]) == ("user/admin", "127.0.0.1")
    assert started["method"] == methods.START_JOB.path
    assert started["rule"] == "policy: role admin; role admin: not narrowed by grants"
    assert started["detail"]["nodes"] == ["a", "b"]
    key = SigningKeyFile(fleet.data.signing_keys(ORGANIZATION)).load(ORGANIZATION).active.key_id
    assert ended["action"] == "job.ended"
    assert ended["detail"]["signed_with"] == {key: 2}
    assert ended["detail"]["states"] == {"succeeded": 2}
    assert "the runs of" in await audit(fleet, "verify", "--runs", "--unsigned")


@within(90)
async def test_cancel_is_on_record_when_it_is_acknowledged(fleet: Fleet, operator: Operator) -> None:
    job = await operator.start("sleep", "a")
    await operator.client.cancel_job(job)
    [cancelled] = [r for r in await records(fleet) if (r["action"], r["subject"]) == ("job.cancelled", f"job/{job}")]
    assert (cancelled["principal"], cancelled["detail"]["nodes"]) == ("user/admin", "all")
    await operator.finished(job)


@within(90)
async def test_enrolment_and_token_are_on_record_and_the_token_is_not(fleet: Fleet) -> None:
    ticket = await fleet.join_ticket("c")
    assert (await _enroll(fleet, ticket.token, "c")) is None
    by_action = {r["action"]: r for r in await records(fleet) if r["subject"] == "node/c"}
    assert set(by_action) == {"enrollment.opened", "node.enrolled"}
    assert by_action["node.enrolled"]["principal"] == "node/c"
    assert ticket.token not in await audit(fleet, "export")


@within(90)
async def test_failed_authentication_is_limited_by_address_and_on_record(fleet: Fleet) -> None:
    """The rest of the fleet is at the same address, and is not held up by what fails there."""
    made_up = replace(await fleet.join_ticket("d"), secret=bytes(32)).token
    refused = [await _enroll(fleet, made_up, "d") for _ in range(LIMIT + 2)]
    reasons = [(error.code, error.reason) for error in refused if error is not None]
    assert reasons[:LIMIT] == [(Code.PERMISSION_DENIED, "INVALID_ENROLLMENT_TOKEN")] * LIMIT
    assert reasons[-1] == (Code.RESOURCE_EXHAUSTED, "TOO_MANY_FAILURES")
    first = await found(fleet, lambda r: r["rule"].endswith("INVALID_ENROLLMENT_TOKEN"))
    assert (first["action"], first["outcome"], first["peer"]) == ("authentication.failed", "refused", "127.0.0.1")
    assert first["detail"]["claimed"] == "node/d"
    await found(fleet, lambda r: r["rule"].endswith("TOO_MANY_FAILURES"))
    good = await fleet.join_ticket("e")
    assert await _enroll(fleet, good.token, "e") is None


@within(90)
async def test_order_that_a_node_refuses_is_on_record_with_the_reason(fleet: Fleet, operator: Operator) -> None:
    done = await operator.run("nothing-of-that-name", "a")
    run = done.runs["a"]
    refused = await found(fleet, lambda r: r["subject"] == f"run/{run.id}")
    assert (refused["action"], refused["rule"]) == ("order.refused", "not_whitelisted")
    assert refused["detail"]["node"] == "a"


@within(90)
async def test_refused_call_is_on_record_with_the_rule_that_refused_it(fleet: Fleet) -> None:
    from shovey_trio.config.operator import load_client_settings
    from shovey_trio.identity.layout import ClientDirectory
    from shovey_trio.rpc.client.client import open_client

    out = fleet.directory / "client-vic"
    await run_program(
        "shovey-trio", "user", "cert", "vic", "--role", "viewer", "--out", str(out), "--data-dir", str(fleet.data.root)
    )
    settings = load_client_settings(ClientDirectory(out).configuration, environ={})
    own = settings.read_certificate()
    tls = ClientTls(ca=own.ca, certificate=own.chain, private_key=own.private_key)
    async with open_client(settings.client.server, tls, server_name=settings.client.server_name) as client:
        with pytest.raises(RpcError):
            await client.remove_node("a")
    refused = await found(fleet, lambda r: r["principal"] == "user/vic" and r["action"] == "call.refused")
    assert (refused["method"], refused["rule"]) == (
        methods.REMOVE_NODE.path,
        "policy: role viewer; PERMISSION_DENIED",
    )
    made = await found(fleet, lambda r: r["action"] == "user.certified" and r["subject"] == "user/vic")
    assert made["principal"].startswith("host/")


async def _enroll(fleet: Fleet, token: str, node: str) -> RpcError | None:
    _, ours, _ = fleet.client_tls()
    request = agent_service_pb2.EnrollRequest(
        token=token,
        organization=ORGANIZATION,
        node=node,
        csr=make_request(make_private_key()),
        agent_instance="0f0e",
    )
    async with open_channel(fleet.listeners["enroll"], ClientTls(ca=ours.ca)) as channel:
        try:
            await channel.unary(methods.ENROLL, request)
        except RpcError as error:
            return error
    return None
