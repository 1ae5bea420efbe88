"""The commands of the README's section "Coming from goiardi", line by line, with everything real but knife itself."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from lab.chef_client import ChefClient, ConnectionDropped, public_pem
from shovey_trio.core.chef.signing import load_private_key
from shovey_trio.core.errors import InvalidRequest
from shovey_trio.demo.fleet import free_port
from shovey_trio.demo.processes import ManagedProcess
from shovey_trio.demo.serf_agents import open_serf_agents
from tests.docs.test_readme import ROOT, SHELL
from tests.rest.knife import make_knife

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


class Machine:
    """Where the lines are run: one directory and one address for what are several machines in the README.

    What is added to a line is where things are, and nothing else: see ``_places``.
    """

    def __init__(self, directory: Path, *, serf_ports: dict[str, int]) -> None:
        self.directory = directory
        self.port = free_port()
        self.goiardi_port = free_port()
        self._serf_ports = serf_ports
        self._listen = [f"--{name}-listen=127.0.0.1:{free_port()}" for name in ("control", "enroll")]

    @property
    def environ(self) -> dict[str, str]:
        programs = str(Path(sys.executable).parent)
        return {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}

    def words(self, line: str) -> list[str]:
        """The line as it is run here."""
        moved = line.replace("/etc/goiardi/goiardi.conf", str(self.directory / "goiardi.conf"))
        moved = moved.replace(f"{HOST}:4545", f"127.0.0.1:{self.port}").replace(HOST, "127.0.0.1")
        words = moved.removesuffix("&").split()
        if words[:2] == ["knife", "goiardi"]:
            return ["ruby", str(KNIFE), *words[2:]]
        return [*words, *self._places(words)]

    def _places(self, words: list[str]) -> Iterator[str]:
        if words[0] == "shovey-trio" and ">" not in words:
            yield from ("--data-dir", str(self.directory / "data"))
        if words[:2] == ["shovey-trio", "init"]:
            yield from self._listen
        if words[:2] == ["shovey-trio", "serve"]:
            yield from ("--set", f"rest.listen=127.0.0.1:{self.port}")
            yield from ("--set", f"serf.address=127.0.0.1:{self._serf_ports['controller']}")
        if words[0] == "shovey-agent":
            yield from ("--serf-addr", f"127.0.0.1:{self._serf_ports['web-9']}")
            yield from ("--state-dir", str(self.directory / "agent"))

    async def run(self, line: str, environ: dict[str, str] | None = None) -> str:
        """Runs a line to its end; what it prints."""
        command = shlex.join(self.words(line)).replace("'>'", f"--data-dir {self.directory / 'data'} >")
        done = await trio.run_process(
            ["bash", "-c", command],
            cwd=self.directory,
            env={**self.environ, **(environ or {})},
            stdin=b"",
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}: {done.stderr.decode()}"
        return done.stdout.decode()

    def background(self, line: str) -> ManagedProcess:
        """A line that ends with ``&``."""
        command = ["bash", "-c", f"cd {shlex.quote(str(self.directory))} && exec {shlex.join(self.words(line))}"]
        log = self.directory / f"{line.split(maxsplit=1)[0]}.log"
        return ManagedProcess(command, log=log, environ={"PATH": self.environ["PATH"]})


async def a_goiardi_with_users_and_nodes(machine: Machine) -> None:
    """Fills a goiardi and leaves it not serving, with its data in files."""
    directory = machine.directory
    settings = {
        "ipaddress": "127.0.0.1",
        "hostname": "localhost",
        "port": machine.goiardi_port,
        "use-auth": True,
        "conf-root": str(directory),
        "data-file": str(directory / "goiardi-data"),
        "index-file": str(directory / "goiardi-index"),
    }
    (directory / "goiardi.conf").write_text(
        "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    )
    process = ManagedProcess(["goiardi", "-c", str(directory / "goiardi.conf")], log=directory / "goiardi.log")
    try:
        await process.start()
        while True:
            process.check()
            try:
                key = load_private_key((directory / "admin.pem").read_text())
                admin = ChefClient(port=machine.goiardi_port, user="admin", key=key)
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
    (tmp_path / "whitelist.json").write_text('{"whitelist": {"hello": "echo hello"}}')
    with trio.fail_after(HARD_LIMIT):
        async with AsyncExitStack() as stack:
            serfs = open_serf_agents(["controller", "web-9"], directory=tmp_path)
            controller_serf, node_serf = await stack.enter_async_context(serfs)
            ports = {"controller": controller_serf.rpc_port, "web-9": node_serf.rpc_port}
            machine = Machine(tmp_path, serf_ports=ports)
            await a_goiardi_with_users_and_nodes(machine)
            alice_key = load_private_key((tmp_path / "alice.pem").read_text())
            alice = ChefClient(port=machine.port, user="alice", key=alice_key)
            knife = make_knife(tmp_path, port=machine.port, user="alice", key=alice_key)
            started: list[ManagedProcess] = []
            try:
                for line in lines:
                    if line.endswith("&"):
                        process = machine.background(line)
                        await process.start()
                        started.append(process)
                        await until_ready(alice, process, agent=line.startswith("shovey-agent"))
                    else:
                        said = await machine.run(line, dict(knife.environ))
                assert json.loads(said.splitlines()[-1]) == {"status": "complete", "nodes": {"succeeded": ["web-9"]}}
                job_id = json.loads(said.splitlines()[0])["id"]
                assert (await alice.get(f"/shovey/jobs/{job_id}/web-9")).json["output"] == "hello\n"
            finally:
                with trio.CancelScope(deadline=trio.current_time() + 40, shield=True):
                    for process in reversed(started):
                        await process.stop()


async def until_ready(alice: ChefClient, process: ManagedProcess, *, agent: bool) -> None:
    """Waits until the controller answers alice, and for an agent until its node is up."""
    while True:
        process.check()
        try:
            answer = await alice.get("/status/node/web-9/latest")
        except (OSError, ConnectionDropped):
            pass
        else:
            assert answer.status == 200, answer.body
            if not agent or answer.json["status"] == "up":
                return
        await trio.sleep(0.1)
