"""A real goiardi with authentication and Shovey on, beside its own serf agent: the server that our old ways are proven
against.

It keeps everything in memory, listens on a free port of 127.0.0.1, and is ended by its own pid.
"""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import httpx2
import trio
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from shovey_trio.core.chef.signing import SigningVersion, load_private_key, sign_request
from shovey_trio.demo.processes import ManagedProcess

_HOST: Final = "127.0.0.1"
_POLL: Final = 0.1
_DATA: Final = "data"


class HasSerfRpc(Protocol):
    """A serf agent, real or emulated."""

    @property
    def rpc_port(self) -> int:
        """Where it takes commands, on 127.0.0.1."""
        ...


class GoiardiFailed(Exception):
    """The program is missing, does not start, or refused a request of the set-up."""


class Goiardi:
    """A running goiardi; made by ``open_goiardi``.

    Attributes:
        url: where it listens.
        signing_key: PEM file of the public key that its orders are signed with.
        process: to be stopped and started again by tests.
    """

    def __init__(self, *, directory: Path, process: ManagedProcess, url: str, signing_key: Path) -> None:
        self.url = url
        self.signing_key = signing_key
        self.process = process
        self._directory = directory
        self._client = httpx2.AsyncClient(timeout=20.0)

    async def aclose(self) -> None:
        """Closes its client."""
        await self._client.aclose()

    async def call(self, method: str, path: str, body: object = None) -> Any:
        """A request of the first admin; returns the answer's JSON.

        Raises:
            GoiardiFailed: it was answered with an error.
        """
        content = b"" if body is None else json.dumps(body).encode()
        key = load_private_key((self._directory / "admin.pem").read_text())
        headers = sign_request(
            method=method,
            path=path,
            body=content,
            user="admin",
            now=time.time(),
            key=key,
            version=SigningVersion.V1_0,
        )
        headers |= {"Accept": "application/json", "Content-Type": "application/json", "X-Chef-Version": "11.12.0"}
        response = await self._client.request(method, self.url + path, content=content, headers=headers)
        if response.status_code >= 400:
            raise GoiardiFailed(f"{method} {path}: {response.status_code} {response.text[:300]}")
        return response.json()

    async def add_node(self, name: str) -> Path:
        """Registers a client and its node; returns the file of its private key."""
        created = await self.call("POST", "/clients", {"name": name, "admin": False})
        empty: Mapping[str, object] = {"automatic": {}, "normal": {}, "default": {}, "override": {}, "run_list": []}
        node = {"name": name, "json_class": "Chef::Node", "chef_type": "node", "chef_environment": "_default"}
        await self.call("POST", "/nodes", {**node, **empty})
        file = self._directory / f"{name}.pem"
        file.touch(mode=0o600)
        file.write_text(created["private_key"])
        return file

    async def wait_node(self, name: str, status: str = "up") -> None:
        """Waits until goiardi has heard of a node."""
        while True:
            try:
                if (await self.call("GET", f"/status/node/{name}/latest"))["status"] == status:
                    return
            except GoiardiFailed:
                pass  # no heartbeat yet: 404
            await trio.sleep(_POLL)

    async def start(self, command: str, *nodes: str, run_timeout: int = 60) -> str:
        """Starts a job and returns its id."""
        body = {"command": command, "nodes": list(nodes), "run_timeout": run_timeout, "quorum": "100%"}
        job_id: str = (await self.call("POST", "/shovey/jobs", body))["id"]
        return job_id

    async def run(self, job_id: str, node: str) -> dict[str, Any]:
        """A node's run as goiardi tells it."""
        found: dict[str, Any] = await self.call("GET", f"/shovey/jobs/{job_id}/{node}")
        return found

    async def wait_run(self, job_id: str, node: str, *statuses: str) -> dict[str, Any]:
        """Waits until a run has one of these statuses."""
        while (found := await self.run(job_id, node))["status"] not in statuses:  # noqa: ASYNC110 - another program changes it
            await trio.sleep(_POLL)
        return found

    async def output(self, job_id: str, node: str, stream: str = "stdout") -> dict[str, Any]:
        """A stream from its beginning."""
        found: dict[str, Any] = await self.call(
            "GET", f"/shovey/stream/{job_id}/{node}?sequence=0&output_type={stream}"
        )
        return found

    async def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancels a job; goiardi waits for serf, some 3 s."""
        answered: dict[str, Any] = await self.call("PUT", "/shovey/jobs/cancel", {"run_id": job_id, "nodes": []})
        return answered

    async def wait_frozen(self) -> None:
        """Waits until everything that it knows by now is in its data file; it must keep one."""
        file = self._directory / _DATA
        # Twice: the first may have been begun before now. It writes nothing when nothing has changed.
        for number in range(2):
            before = file.stat().st_mtime_ns if file.exists() else 0
            await self.call("POST", "/clients", {"name": f"change-{time.time_ns()}-{number}", "admin": False})
            while not file.exists() or file.stat().st_mtime_ns == before:  # noqa: ASYNC110 - another program changes it
                await trio.sleep(_POLL)

    async def ready(self) -> None:
        """Waits until it answers.

        Raises:
            ProcessFailed: it has ended instead.
        """
        while True:
            self.process.check()
            try:
                await self.call("GET", "/shovey/jobs")
            except (httpx2.TransportError, OSError, GoiardiFailed):
                await trio.sleep(_POLL)
            else:
                return


def find_goiardi() -> str | None:
    """The program, or None where it is not installed."""
    return shutil.which("goiardi")


@asynccontextmanager
async def open_goiardi(
    directory: Path, *, serf: HasSerfRpc, log_level: str = "debug", keeps_data: bool = False
) -> AsyncIterator[Goiardi]:
    """Starts one.

    Args:
        directory: for keys and log; the caller removes it.
        serf: the serf agent beside it.
        log_level: goiardi's word for how much it logs.
        keeps_data: in files, once a second, so that it may be killed and started again; see ``Goiardi.wait_frozen``.

    Raises:
        GoiardiFailed: it is not installed.
    """
    program = find_goiardi()
    if program is None:
        raise GoiardiFailed("the goiardi program is not installed")
    private = generate_private_key(public_exponent=65537, key_size=2048)
    _write_keys(directory, private)
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port = probe.getsockname()[1]
    process = ManagedProcess(
        [
            program,
            f"--ipaddress={_HOST}",
            f"--hostname={_HOST}",
            f"--port={port}",
            f"--conf-root={directory}",
            f"--local-filestore-dir={directory}",
            "--use-auth",
            "--use-serf",
            f"--serf-addr={_HOST}:{serf.rpc_port}",
            "--use-shovey",
            f"--sign-priv-key={directory / 'shovey.pem'}",
            f"--log-level={log_level}",
            *(_keeping(directory) if keeps_data else ()),
        ],
        log=directory / "goiardi.log",
    )
    goiardi = Goiardi(
        directory=directory, process=process, url=f"http://{_HOST}:{port}", signing_key=directory / "shovey.pub"
    )
    try:
        await process.start()
        await goiardi.ready()
        yield goiardi
    finally:
        with trio.CancelScope(deadline=trio.current_time() + 25.0, shield=True):
            await goiardi.aclose()
            await process.kill()


def _keeping(directory: Path) -> list[str]:
    return [f"--data-file={directory / _DATA}", f"--index-file={directory / 'index'}", "--freeze-interval=1"]


def _write_keys(directory: Path, private: RSAPrivateKey) -> None:
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    file = directory / "shovey.pem"
    file.touch(mode=0o600)
    file.write_bytes(pem)
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (directory / "shovey.pub").write_bytes(public)
