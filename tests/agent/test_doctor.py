"""``shovey-agent doctor`` and the serf agent beside this one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs

from lab.fake_serf import FakeSerfCluster
from shovey_agent.config import AgentSettings
from shovey_agent.credentials import CredentialStore
from shovey_agent.net.doctor import diagnose
from shovey_agent.net.doorbells import DoorbellListener
from shovey_agent.net.enroll import enroll
from shovey_trio.serf.link import SerfLink, SerfSettings

from .test_enroll import Controller

WRONG = "the serf agent is called web-1.example.com, not acme:web-1: no doorbell reaches this node"


@asynccontextmanager
async def serf_agent(name: str) -> AsyncIterator[int]:
    """A serf agent of that name; its RPC port."""
    agent = FakeSerfCluster(name).agent(name)
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, agent.serve, 0, host="127.0.0.1"))
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel(reason="the test is over")


async def settings(directory: Path, port: int) -> AgentSettings:
    """Of a node that is enrolled as acme:web-1 and waits for doorbells."""
    controller = Controller()
    await enroll(controller.join, CredentialStore(directory / "state"), controller.enroll)
    (directory / "whitelist.json").write_text('{"whitelist": {"true": "/bin/true"}}')
    agent = {"state_dir": directory / "state", "whitelist": directory / "whitelist.json", "link": "on-demand"}
    return AgentSettings.model_validate({"agent": agent, "serf": {"address": f"127.0.0.1:{port}"}})


@pytest.mark.parametrize(("name", "wrong"), [("acme:web-1", ""), ("web-1.example.com", WRONG)])
async def test_doctor_says_when_serf_has_another_name_than_the_node(tmp_path: Path, name: str, wrong: str) -> None:
    with trio.fail_after(20):
        async with serf_agent(name) as port:
            found = {finding.check: finding for finding in await diagnose(await settings(tmp_path, port))}
    assert found["whitelist"].is_well
    assert (found["serf"].is_well, found["serf"].message) == (not wrong, wrong or "the agent acme:web-1")


async def test_doctor_says_what_is_missing_of_a_node(tmp_path: Path) -> None:
    [finding] = await diagnose(AgentSettings.model_validate({"agent": {"state_dir": tmp_path / "none"}}))
    assert not finding.is_well
    assert "shovey-trio node token" in finding.advice
    # Nobody listens on a port that was just given back.
    async with serf_agent("acme:web-1") as port:
        pass
    found = {finding.check: finding for finding in await diagnose(await settings(tmp_path, port))}
    assert not found["serf"].is_well


async def test_an_agent_says_at_its_start_that_serf_has_another_name() -> None:
    with trio.fail_after(20), capture_logs() as logs:
        async with serf_agent("web-1.example.com") as port, trio.open_nursery() as nursery:
            link = SerfLink(SerfSettings(host="127.0.0.1", port=port, events=("query",), follow_members=False))
            listener = DoorbellListener(
                link=link, organization="acme", node="web-1", keys=lambda _: (), wake=lambda _: None
            )
            nursery.start_soon(listener.serve)
            await link.wait_connected()
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel(reason="the test has seen it")
    assert [log["error"] for log in logs if log["event"] == "serf.foreign_name"] == [WRONG]
