"""Several organizations on one running controller: made, used and removed by commands, nobody sending a signal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from lab.chef_client import ChefClient, make_key, public_pem
from shovey_trio.core.jobs.model import Run
from shovey_trio.core.jobs.states import RunState
from shovey_trio.demo.fleet import Fleet, free_port, open_fleet, run_program
from shovey_trio.demo.processes import ManagedProcess, ProcessFailed, program
from shovey_trio.store.opening import open_store

pytestmark = pytest.mark.slow

HARD_LIMIT = 110.0
# The sleep outlives its agent, as every command does, and with it the test; no longer than the test may take.
WHITELIST = '{"whitelist": {"hello": "echo hello", "sleep": "sleep 110"}}'
JOBS = "/organizations/acme/shovey/jobs"


async def admin(fleet: Fleet, directory: Path, *words: str) -> str:
    """A command on the controller's host."""
    return await run_program("shovey-trio", *words, "--data-dir", str(fleet.data.root))


@asynccontextmanager
async def agent_of(fleet: Fleet, directory: Path, name: str) -> AsyncIterator[ManagedProcess]:
    """A node of the organization acme with a running agent."""
    join = await admin(fleet, directory, "node", "token", name, "-q", "--org", "acme")
    state_dir, whitelist = directory / name, directory / f"{name}.json"
    await run_program("shovey-agent", "enroll", join.strip(), "--state-dir", str(state_dir))
    whitelist.write_text(WHITELIST)
    settings = ["--set", f"agent.whitelist={whitelist}", "--set", "serf.enabled=false"]
    command = [*program("shovey-agent"), "run", "--state-dir", str(state_dir), *settings]
    process = ManagedProcess(command, log=directory / f"{name}.log")
    try:
        await process.start()
        yield process
    finally:
        with trio.CancelScope(deadline=trio.current_time() + 25, shield=True):
            await process.stop()


async def answered(client: ChefClient, path: str, status: int) -> None:
    """Waits until a request is answered like this; seldom asked, because failing too often is answered 429."""
    while (await client.get(path)).status != status:
        await trio.sleep(0.5)


async def stored_run(fleet: Fleet, job_id: str, node: str) -> Run:
    async with open_store(fleet.data.store, exclusive=False) as store:
        run = await store.get_run("acme", job_id, node)
    assert run is not None
    return run


async def test_organization_comes_works_and_goes_while_the_controller_runs(tmp_path: Path) -> None:
    port = free_port()
    settings = {"rest.enabled": "true", "rest.listen": f"127.0.0.1:{port}"}
    with trio.fail_after(HARD_LIMIT):
        async with open_fleet(tmp_path, [], serf=False, settings=settings) as fleet:
            keys: dict[str, RSAPrivateKey] = {}
            await admin(fleet, tmp_path, "org", "add", "acme")
            for name, organization in (("ann", "acme"), ("bob", "default")):
                keys[name] = make_key()
                (tmp_path / f"{name}.pub").write_text(public_pem(keys[name]))
                words = [name, "--role", "admin", "--public-key", str(tmp_path / f"{name}.pub"), "--org", organization]
                await admin(fleet, tmp_path, "user", "add", *words)
            ann = ChefClient(port=port, user="ann", key=keys["ann"])
            bob = ChefClient(port=port, user="bob", key=keys["bob"])
            await answered(ann, JOBS, 200)
            await answered(bob, "/shovey/jobs", 200)
            assert ((await ann.get("/shovey/jobs")).status, (await bob.get(JOBS)).status) == (401, 401)

            async with agent_of(fleet, tmp_path, "web-1"):
                while [node["status"] for node in (await ann.get("/organizations/acme/status/all/nodes")).json] != [
                    "up"
                ]:
                    await trio.sleep(0.1)
                assert (await bob.get("/status/all/nodes")).json == []
                started = await ann.post(JOBS, {"command": "hello", "nodes": ["web-1"], "quorum": 1})
                path = f"{JOBS}/{started.json['id']}"
                while (await ann.get(path)).json["status"] == "running":
                    await trio.sleep(0.1)
                assert (await ann.get(f"{path}/web-1")).json["output"] == "hello\n"
                assert (await bob.get("/shovey/jobs")).json == []

                started = await ann.post(JOBS, {"command": "sleep", "nodes": ["web-1"], "quorum": 1})
                job_id = started.json["id"]
                while (await stored_run(fleet, job_id, "web-1")).state is not RunState.RUNNING:
                    await trio.sleep(0.05)
                with pytest.raises(ProcessFailed, match=job_id):
                    await admin(fleet, tmp_path, "org", "remove", "acme")
                assert (await ann.get(JOBS)).status == 200
                await admin(fleet, tmp_path, "org", "remove", "acme", "--force")
                await answered(ann, JOBS, 401)
                while (await stored_run(fleet, job_id, "web-1")).state is not RunState.UNKNOWN:
                    await trio.sleep(0.05)
            assert (await bob.get("/shovey/jobs")).json == []
            assert fleet.noise() == []
