"""The controller's route to old nodes: emulated schobs and our own agent as one, over real serf and real HTTP."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from lab.chef_client import ChefClient, make_key, public_pem
from lab.fake_schob import FAKE_SCHOB_EVENTS, FakeCommand, FakeSchob
from shovey_trio.core.chef.signing import load_public_key
from shovey_trio.core.jobs.model import StreamName
from shovey_trio.demo.fleet import ORGANIZATION, Fleet, free_port, run_program
from shovey_trio.demo.operator import Operator, open_operator
from shovey_trio.demo.serf_agents import SerfAgentProcess, find_serf, open_serf_agents
from shovey_trio.serf.link import SerfSettings
from shovey_trio.shovey.keys import SCHOB_KEYS
from shovey_trio.shovey.protocol.report import PutStatus, RunPut, StreamPut
from tests.legacy.conftest import make_schob

pytestmark = [pytest.mark.serf, pytest.mark.slow]

PLAIN, NAMED = "plain-1", "named-1"
COMMANDS: Mapping[str, FakeCommand] = {
    "hello": FakeCommand(stdout=("hel", "lo\n")),
    "fail": FakeCommand(stderr=("no\n",), end=RunPut(status=PutStatus.FAILED, exit_status=3, error="exit status 3")),
    "late": FakeCommand(end=RunPut(status=PutStatus.FAILED, error="Job j on node n timed out")),
    "long": FakeCommand(seconds=600.0),
    "dead": FakeCommand(end=None, says_running=False),
}


class Route:
    """A controller with old nodes."""

    def __init__(self, fleet: Fleet, *, endpoint: str, agents: Mapping[str, SerfAgentProcess]) -> None:
        self.fleet = fleet
        self.endpoint = endpoint
        self.agents = agents
        self.keys: dict[str, RSAPrivateKey] = {}
        self.key_file = SCHOB_KEYS.file_of(fleet.data, ORGANIZATION)

    async def register(self, name: str, organization: str = ORGANIZATION) -> None:
        """As an admin does, before the controller starts or with a HUP after."""
        self.keys[name] = key = make_key()
        pem = self.fleet.directory / f"{name}.pub"
        pem.write_text(public_pem(key))
        await self.admin("node", "add", "--legacy", name, "--public-key", str(pem), "--org", organization)

    async def admin(self, *words: str) -> str:
        """A command on the controller's host."""
        return await run_program("shovey-trio", *words, "--data-dir", str(self.fleet.data.root))

    def schob(
        self, name: str, *, client: str = "", path: str = "", signing_key: RSAPublicKey | None = None
    ) -> FakeSchob:
        """An emulated schob on a registered node.

        Args:
            client: its client name, if it is not the node's.
            path: behind the endpoint's host.
        """
        agent = self.agents[name]
        return FakeSchob(
            name=client or name,
            endpoint=self.endpoint + path,
            key=self.keys[name],
            signing_key=signing_key or self.signing_key(),
            serf=SerfSettings(port=agent.rpc_port, events=FAKE_SCHOB_EVENTS),
            commands=COMMANDS,
        )

    def signing_key(self) -> RSAPublicKey:
        return load_public_key(self.key_file.load(ORGANIZATION).current.public_pem)

    def reload(self) -> None:
        """As ``systemctl reload`` does."""
        self.fleet.controller.send_signal(signal.SIGHUP)


@asynccontextmanager
async def open_route(
    directory: Path, nodes: Mapping[str, str], *, organization: str = ORGANIZATION, **settings: str
) -> AsyncIterator[tuple[Route, Operator]]:
    """A controller, and a serf agent for each node (node name → serf name)."""
    if find_serf() is None:
        pytest.skip("needs serf")
    port = free_port()
    fixed = {
        "legacy.enabled": "true",
        "rest.enabled": "true",
        "rest.listen": f"127.0.0.1:{port}",
        "jobs.acceptance": "20s",
    }
    names = [f"{ORGANIZATION}:controller", *nodes.values()]
    with trio.fail_after(100):
        async with open_serf_agents(names, directory=directory) as (own, *agents):
            fleet = Fleet(directory, settings={**fixed, **settings}, serf=own)
            route = Route(fleet, endpoint=f"http://127.0.0.1:{port}", agents=dict(zip(nodes, agents, strict=True)))
            try:
                await fleet.initialize()
                if organization != ORGANIZATION:
                    await route.admin("org", "add", organization)
                for node in nodes:
                    await route.register(node, organization)
                await fleet.controller.start()
                await fleet.wait_ready()
                async with open_operator(fleet) as operator:
                    yield route, operator
                assert not fleet.noise(), fleet.noise()
            finally:
                await fleet.end()  # noqa: ASYNC102 - shielded inside


async def test_old_nodes_run_jobs_under_both_kinds_of_names(tmp_path: Path) -> None:
    nodes = {PLAIN: PLAIN, NAMED: f"{ORGANIZATION}:{NAMED}"}
    async with open_route(tmp_path, nodes) as (route, operator), trio.open_nursery() as nursery:
        schobs = {name: route.schob(name) for name in nodes}
        for schob in schobs.values():
            nursery.start_soon(schob.run)
        await route.fleet.wait_up([*nodes])

        done = await operator.run("hello", *nodes)
        assert done.states() == dict.fromkeys(nodes, "succeeded")
        for name in nodes:
            assert await operator.output(done.job.id, name) == b"hello\n"
            run = done.runs[name]
            assert (run.attempts, run.exit_code) == (1, 0)
            assert schobs[name].starts == [done.job.id]
            # The end was told before the output, and every piece of it was taken.
            told = schobs[name].answers
            assert [word for word, _ in told][:2] == ["running", "succeeded"]
            assert {answer for _, answer in told} == {200}
        # One order, one signature, one query: both got the same bytes at the same time.
        failed = await operator.run("fail", *nodes)
        assert failed.states() == dict.fromkeys(nodes, "failed")
        assert {run.exit_code for run in failed.runs.values()} == {3}
        assert (await operator.run("late", PLAIN)).states() == {PLAIN: "timed_out"}
        assert (await operator.run("unlisted", PLAIN)).states() == {PLAIN: "nacked"}
        await _check_late_words(route, operator, schobs[PLAIN], done.job.id)
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_a_schob_of_another_organization_is_up_runs_and_reports(tmp_path: Path) -> None:
    """Whichever of its names it goes by, and whether its endpoint has a final slash or no path at all."""
    clients = {
        "n1": ("n1", ""),
        "n2": ("n2", "/organizations/acme"),
        "n3": ("n3", "/organizations/acme/"),
        "n4": ("acme:n4", "/"),
        "n5": ("acme:n5", "/organizations/acme"),
        "n6": ("acme:n6", "/organizations/acme/"),
    }
    nodes = {name: f"acme:{name}" for name in clients}
    jobs = "/organizations/acme/shovey/jobs"
    async with open_route(tmp_path, nodes, organization="acme") as (route, _), trio.open_nursery() as nursery:
        ann = ChefClient(port=urlsplit(route.endpoint).port or 0, user="ann", key=make_key())
        (tmp_path / "ann.pub").write_text(public_pem(ann.key))
        who = ("ann", "--role", "admin", "--org", "acme", "--public-key", str(tmp_path / "ann.pub"))
        await route.admin("user", "add", *who)
        signing_key = load_public_key(await route.admin("legacy", "key", "status", "--pem", "--org", "acme"))
        for name, (client, path) in clients.items():
            nursery.start_soon(route.schob(name, client=client, path=path, signing_key=signing_key).run)

        async def answer(path: str, good: Callable[[Any], bool]) -> Any:
            while not good(found := (await ann.get(path)).json):
                await trio.sleep(0.3)
            return found

        statuses = "/organizations/acme/status/all/nodes"
        await answer(statuses, lambda all_: [node["status"] for node in all_] == ["up"] * len(nodes))
        started = await ann.post(jobs, {"command": "hello", "nodes": [*nodes]})
        job = await answer(f"{jobs}/{started.json['id']}", lambda job: job["status"] != "running")
        assert job["nodes"] == {"succeeded": [*nodes]}
        for name in nodes:
            assert (await ann.get(f"{jobs}/{job['id']}/{name}")).json["output"] == "hello\n"
        # knife shows what the answer to its cancel says, and asks no more.
        long = (await ann.post(jobs, {"command": "long", "nodes": ["n1"]})).json["id"]
        await answer(f"{jobs}/{long}", lambda job: job["nodes"] == {"running": ["n1"]})
        cancelled = (await ann.put(f"{jobs}/cancel", {"run_id": long, "nodes": [], "kill_timeout": "1"})).json
        assert (cancelled["status"], cancelled["nodes"]) == ("cancelled", {"cancelled": ["n1"]})
        run = (await ann.get(f"{jobs}/{long}/n1")).json
        assert run["error"].startswith("cancel unproven, the command may still run: ")
        nursery.cancel_scope.cancel(reason="the test is over")


async def _check_late_words(route: Route, operator: Operator, schob: FakeSchob, job_id: str) -> None:
    """What a node says of a run that has ended."""
    assert await schob.say(job_id, RunPut(status=PutStatus.RUNNING)) == 409
    assert await schob.say(job_id, RunPut(status=PutStatus.SUCCEEDED)) == 200
    assert await schob.say(job_id, RunPut(status=PutStatus.INVALID, error="could not be verified!")) == 409
    again = StreamPut(stream=StreamName.STDOUT, seq=0, is_last=False, data=b"hel")
    assert await schob.send(job_id, again) == 409
    assert await operator.output(job_id, PLAIN) == b"hello\n"
    late = StreamPut(stream=StreamName.STDOUT, seq=7, is_last=True, data=b"more")
    assert await schob.send(job_id, late) == 200
    assert await operator.output(job_id, PLAIN) == b"hello\nmore"
    # A node may speak for itself alone.
    assert await schob.put(f"/shovey/jobs/{job_id}/{NAMED}", b'{"status":"failed"}') == 403
    assert await schob.put(f"/shovey/jobs/{job_id}/nobody", b'{"status":"failed"}') in (403, 404)
    run = await operator.client.get_run(job_id, PLAIN)
    assert not run.HasField("late_report")


async def test_a_cancelled_old_node_ends_unproven_and_a_dead_one_is_not_started_twice(tmp_path: Path) -> None:
    settings = {"jobs.acceptance": "8s"}
    async with open_route(tmp_path, {PLAIN: PLAIN}, **settings) as (route, operator), trio.open_nursery() as nursery:
        schob = route.schob(PLAIN)
        nursery.start_soon(schob.run)
        await route.fleet.wait_up([PLAIN])
        dead = await operator.start("dead", PLAIN)
        long = await operator.start("long", PLAIN, grace=0.0)
        await operator.reached(long, PLAIN, "running")
        await operator.client.cancel_job(long)
        done = await operator.finished(long)
        assert done.states() == {PLAIN: "cancel_unproven"}
        assert schob.cancels == [long]
        # Serf brought the order, the node says nothing: it is unknown what became of it, and it is not sent again.
        run = await operator.reached(dead, PLAIN, "unknown")
        assert (run.attempts, run.cause) == (1, "not_confirmed")
        assert schob.starts.count(dead) == 1
        await operator.client.cancel_job(dead)
        assert (await operator.finished(dead)).states() == {PLAIN: "cancel_unproven"}
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_after_a_reset_each_node_is_signed_for_with_the_key_it_holds(tmp_path: Path) -> None:
    async with open_route(tmp_path, {PLAIN: PLAIN}) as (route, operator), trio.open_nursery() as nursery:
        schob = route.schob(PLAIN)
        nursery.start_soon(schob.run)
        await route.fleet.wait_up([PLAIN])
        old = schob.signing_key
        arguments = ("--data-dir", str(route.fleet.data.root))
        await run_program("shovey-trio", "legacy", "key", "reset", *arguments)
        route.reload()
        assert (await operator.run("hello", PLAIN)).states() == {PLAIN: "succeeded"}
        assert PLAIN in await run_program("shovey-trio", "legacy", "key", "status", *arguments)
        # Now the admin puts the new key on the node.
        schob.signing_key = route.signing_key()
        assert schob.signing_key.public_numbers() != old.public_numbers()
        moved = await operator.run("hello", PLAIN)
        assert moved.states() == {PLAIN: "succeeded"}
        assert moved.runs[PLAIN].attempts == 2
        assert ("invalid", 200) in schob.answers
        # Nobody holds the old key any more: it is gone.
        while len((await trio.to_thread.run_sync(route.key_file.load, ORGANIZATION)).keys) > 1:  # noqa: ASYNC110 - another program changes it
            await trio.sleep(0.1)
        assert (await operator.run("hello", PLAIN)).runs[PLAIN].attempts == 1
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_an_order_that_fits_no_query_fails_at_once_and_says_so(tmp_path: Path) -> None:
    settings = {"serf.query_size_limit": "560"}
    async with open_route(tmp_path, {PLAIN: PLAIN}, **settings) as (route, operator), trio.open_nursery() as nursery:
        schob = route.schob(PLAIN)
        nursery.start_soon(schob.run)
        await route.fleet.wait_up([PLAIN])
        done = await operator.run("hello", PLAIN)
        assert done.states() == {PLAIN: "unavailable"}
        assert done.runs[PLAIN].cause == "too_large"
        assert PLAIN in done.runs[PLAIN].detail
        assert not schob.starts
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_our_own_agent_works_as_an_old_node_and_survives_the_controller(tmp_path: Path) -> None:
    async with open_route(tmp_path, {PLAIN: PLAIN}) as (route, operator):
        key = tmp_path / "client.pem"
        key.touch(mode=0o600)
        private = route.keys[PLAIN]
        key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        signing_key = tmp_path / "signing.pub"
        signing_key.write_text(route.key_file.load(ORGANIZATION).current.public_pem)
        agent = make_schob(
            tmp_path, node=PLAIN, endpoint=route.endpoint, key=key, signing_key=signing_key, serf=route.agents[PLAIN]
        )
        try:
            await agent.process.start()
            await route.fleet.wait_up([PLAIN])
            done = await operator.run("both", PLAIN)
            assert done.states() == {PLAIN: "failed"}
            assert done.runs[PLAIN].exit_code == 3
            assert await operator.output(done.job.id, PLAIN) == b"out\n"
            done = await operator.run("bytes", PLAIN)
            assert await operator.output(done.job.id, PLAIN) == b"\xff\xfeok\xc3"  # byte for byte, through JSON
            assert (await operator.run("sleepy", PLAIN, timeout=1.0)).states() == {PLAIN: "timed_out"}

            # The controller dies while the command runs, and comes back: nothing is lost, doubled or started again.
            job = await operator.start("slow", PLAIN)
            await operator.reached(job, PLAIN, "running")
            await route.fleet.controller.kill()
            await trio.sleep(2)
            await route.fleet.controller.start()
            await route.fleet.wait_ready()
            done = await operator.finished(job)
            assert done.states() == {PLAIN: "succeeded"}
            assert (await operator.output(job, PLAIN)).decode() == "".join(f"é{n}" for n in range(1, 9))
            assert done.runs[PLAIN].attempts == 1

            job = await operator.start("sleepy", PLAIN)
            await operator.reached(job, PLAIN, "running")
            await operator.client.cancel_job(job)
            assert (await operator.finished(job)).states() == {PLAIN: "cancel_unproven"}
            agent.process.check()
        finally:
            with trio.CancelScope(deadline=trio.current_time() + 20, shield=True):
                await agent.process.stop()
