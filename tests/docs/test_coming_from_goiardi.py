"""The commands of the README's section "Coming from goiardi", as they stand there; all is real but knife itself."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from lab.chef_client import ChefClient, ConnectionDropped, public_pem
from lab.machines import Machine, open_machines, open_serf_ring
from shovey_trio.core.chef.signing import load_private_key
from shovey_trio.core.errors import InvalidRequest
from shovey_trio.demo.fleet import free_port
from shovey_trio.demo.processes import ManagedProcess
from tests.docs.test_readme import ROOT, SHELL
from tests.rest.knife import missing

pytestmark = [pytest.mark.goiardi, pytest.mark.serf, pytest.mark.slow]

HARD_LIMIT = 110.0
SECTION = "## Coming from goiardi"
HOST = "controller.example.com"
KNIFE = ROOT / "tests" / "rest" / "knife.rb"
EMPTY = {"automatic": {}, "normal": {}, "default": {}, "override": {}, "run_list": []}


def lines_of_the_section() -> list[str]:
    text = (ROOT / "README.md").read_text("utf-8")
    (block,) = SHELL.findall(text[text.index(SECTION) :].partition("\n## ")[0])
    lines = (
        " ".join(shlex.split(line, comments=True)) and line.partition(" #")[0].strip() for line in block.splitlines()
    )
    return [line for line in lines if line and not line.startswith("#")]


async def a_goiardi_with_users_and_nodes(machine: Machine, directory: Path) -> None:
    """Fills a goiardi and leaves it not serving, with its data in files."""
    port = free_port()
    settings = {
        "ipaddress": "127.0.0.1",
        "hostname": "localhost",
        "port": port,
        "use-auth": True,
        "conf-root": str(directory),
        "data-file": str(directory / "goiardi-data"),
        "index-file": str(directory / "goiardi-index"),
    }
    file = directory / "goiardi.conf"
    file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    await machine.run("install -D goiardi.conf /etc/goiardi/goiardi.conf")
    process = ManagedProcess(["goiardi", "-c", str(file)], log=directory / "goiardi.log")
    try:
        await process.start()
        while True:
            process.check()
            try:
                key = load_private_key((directory / "admin.pem").read_text())
                admin = ChefClient(port=port, user="admin", key=key)
                if (await admin.get("/users")).status == 200:
                    break
            except (OSError, ConnectionDropped, InvalidRequest):
                pass  # its keys are still being made
            await trio.sleep(0.1)
        alice = await admin.post("/users", {"name": "alice", "password": "secret1", "admin": False})
        (directory / "alice.pem").write_text(alice.json["private_key"])
        (directory / "alice.pub").write_text(public_pem(load_private_key(alice.json["private_key"])))
        client = await admin.post("/clients", {"name": "web-9", "admin": False})
        file = directory / "web-9.pem"
        file.touch(mode=0o600)
        file.write_text(client.json["private_key"])
        node = {"name": "web-9", "json_class": "Chef::Node", "chef_type": "node", "chef_environment": "_default"}
        assert (await admin.post("/nodes", node | EMPTY)).status == 201
    finally:
        with trio.CancelScope(deadline=trio.current_time() + 25, shield=True):
            await process.stop()


async def test_the_lines_of_the_readme_lead_from_goiardi_to_a_job(tmp_path: Path) -> None:
    lines = lines_of_the_section()
    assert [line.split()[0] for line in lines] == ["goiardi", *["shovey-trio"] * 5, "shovey-agent", "knife"]
    if missing():
        pytest.skip(missing())
    (tmp_path / "whitelist.json").write_text('{"whitelist": {"hello": "echo hello"}}')
    knife = {"CHEF_URL": f"http://{HOST}:4545", "CHEF_USER": "alice", "CHEF_KEY": "alice.pem", "RETRY_WAIT": "0.1"}
    with trio.fail_after(HARD_LIMIT):
        await _run(lines, tmp_path, knife)


async def _run(lines: list[str], directory: Path, knife: Mapping[str, str]) -> None:
    async with AsyncExitStack() as stack:
        controller, node = await stack.enter_async_context(open_machines(directory, HOST, "web-9"))
        await stack.enter_async_context(open_serf_ring(controller, node))
        controller.programs.mkdir()
        stand_in = controller.programs / "knife"
        stand_in.write_text(f'#!/bin/sh\nshift\nexec ruby {KNIFE} "$@"\n')
        stand_in.chmod(0o755)
        await a_goiardi_with_users_and_nodes(controller, directory)
        for line in lines:
            machine = node if line.startswith(("shovey-agent", "knife")) else controller
            if line.endswith("&"):
                process = machine.background(line.removesuffix("&"))
                stack.push_async_callback(process.stop)
                await process.start()
                await until_told(node, process, knife, "up" if machine is node else "web-9")
            else:
                said = await machine.run(line, knife)
        assert json.loads(said.splitlines()[-1]) == {"status": "complete", "nodes": {"succeeded": ["web-9"]}}
        job_id = json.loads(said.splitlines()[0])["id"]
        assert await node.run(f"knife goiardi job stream {job_id} web-9", knife) == "hello\n"


async def until_told(node: Machine, process: ManagedProcess, knife: Mapping[str, str], word: str) -> None:
    """Waits until the controller tells knife this word of the node; it asks from the other machine, as alice would."""
    while word not in await node.run("knife goiardi node status web-9 || true", knife):
        process.check()
        await trio.sleep(0.1)
