"""The shim of a real controller, in front of a real agent: set up by the commands, used as knife uses it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from lab.chef_client import Answer, ChefClient, make_key, public_pem
from shovey_trio.core.chef.signing import SigningVersion
from shovey_trio.demo.fleet import Fleet, NodeSpec, free_port, open_fleet, run_program
from shovey_trio.demo.processes import ProcessFailed

HARD_LIMIT = 100.0
WHITELIST = {"hello": "echo hello", "sleep": "sleep 60"}
NODES = [NodeSpec(name="web-1", tags={"role": "web"}, whitelist=WHITELIST)]


async def let_in(fleet: Fleet, directory: Path, name: str, role: str, port: int) -> ChefClient:
    key = make_key()
    file = directory / f"{name}.pub"
    file.write_text(public_pem(key))
    (directory / f"{name}.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    )
    await run_program("shovey-trio", "user", "key", name, str(file), "--role", role, "--data-dir", str(fleet.data.root))
    return ChefClient(port=port, user=name, key=key, version=SigningVersion.V1_1)


async def poll(client: ChefClient, path: str) -> Answer:
    """As knife waits for the end of a job."""
    while True:
        answer = await client.get(path)
        if answer.json["status"] not in {"new", "voting", "running"}:
            return answer
        await trio.sleep(0.1)


async def test_what_knife_does_works_from_start_to_end(tmp_path: Path) -> None:
    port = free_port()
    settings = {"rest.enabled": "true", "rest.listen": f"127.0.0.1:{port}"}
    with trio.fail_after(HARD_LIMIT):
        async with open_fleet(tmp_path, NODES, serf=False, settings=settings) as fleet:
            admin = await let_in(fleet, tmp_path, "admin", "admin", port)
            assert [entry["status"] for entry in (await admin.get("/status/all/nodes")).json] == ["up"]
            assert (await admin.get("/search/node?q=tags%253Arole%253Dweb")).json["rows"] == [{"name": "web-1"}]

            started = await admin.post("/shovey/jobs", {"command": "hello", "nodes": ["web-1"], "quorum": 1})
            job = f"/shovey/jobs/{started.json['uri'][-36:]}"
            assert (await poll(admin, job)).json["nodes"] == {"succeeded": ["web-1"]}
            assert (await admin.get(f"{job}/web-1")).json["output"] == "hello\n"

            started = await admin.post("/shovey/jobs", {"command": "sleep", "nodes": ["web-1"], "quorum": 1})
            job_id = started.json["id"]
            cancelled = await admin.put("/shovey/jobs/cancel", {"run_id": job_id, "nodes": [], "kill_timeout": "5"})
            assert (cancelled.json["status"], cancelled.json["nodes"]) == ("cancelled", {"cancelled": ["web-1"]})

            refused = await admin.post("/shovey/jobs", {"command": "other", "nodes": ["web-1"], "quorum": 1})
            ended = await poll(admin, f"/shovey/jobs/{refused.json['id']}")
            assert ended.json["nodes"] == {"nacked": ["web-1"]}

            # The same search from the command line, which asks by gRPC.
            operator = ("--config", str(fleet.client_directory.configuration))
            start = ("job", "start", "hello", "--search")
            said = await run_program("shovey", *operator, *start, "role:web AND tags:role")
            assert "hello" in said
            with pytest.raises(ProcessFailed, match="the search cannot have"):
                await run_program("shovey", *operator, *start, "ipaddress:10.*")

            # A key that is taken away stops working, at once when the daemon is told.
            await run_program("shovey-trio", "user", "remove-key", "admin", "--data-dir", str(fleet.data.root))
            assert fleet.controller.pid is not None
            os.kill(fleet.controller.pid, signal.SIGHUP)
            while True:
                if (await admin.get("/shovey/jobs")).status == 401:
                    break
                await trio.sleep(0.05)
