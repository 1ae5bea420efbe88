"""The real ``shovey`` as a process of its own, against a fake controller behind the real bridge with mutual TLS."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from lab.fake_controller import FakeController, FakeRun
from lab.rpc_certificates import CertificateAuthority
from shovey_trio.rpc.bridge import Listener, open_server
from shovey_trio.rpc.errors import status_of

ALL_BYTES = bytes(range(256))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a ``shovey`` process ended and what it wrote."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def out(self) -> str:
        return self.stdout.decode()

    @property
    def err(self) -> str:
        return self.stderr.decode()


@dataclass(eq=False, kw_only=True)
class OperatorRig:
    """A controller, and ``shovey`` set up to talk to it."""

    controller: FakeController
    server: str
    environ: Mapping[str, str]
    # Set by a test to let the script ``gated`` go on.
    gate: trio.Event = field(default_factory=trio.Event)

    def command(self, *arguments: str) -> list[str]:
        """The command line of ``shovey`` with ``arguments``."""
        program = "from shovey_trio.cli.operator.main import main; main()"
        return [sys.executable, "-c", program, *arguments]

    async def run(self, *arguments: str, environ: Mapping[str, str] | None = None) -> Ended:
        """Run ``shovey`` to its end."""
        with trio.fail_after(30):
            done = await trio.run_process(
                self.command(*arguments),
                env={**self.environ, **(environ or {})},
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        return Ended(code=done.returncode, stdout=done.stdout, stderr=done.stderr)


async def hello(run: FakeRun) -> int:
    run.write(f"hello from {run.node}\n".encode())
    await trio.lowlevel.checkpoint()
    return 0


async def mixed(run: FakeRun) -> int:
    run.write(b"to stdout\n")
    run.write(b"to stderr\n", stderr=True)
    await trio.lowlevel.checkpoint()
    return 3 if run.node == "web-2" else 0


async def binary(run: FakeRun) -> int:
    run.write(ALL_BYTES[:100])
    await trio.lowlevel.checkpoint()
    run.write(ALL_BYTES[100:])
    return 0


async def hang(run: FakeRun) -> int:
    run.write(b"started\n")
    await trio.sleep_forever()


@pytest.fixture(scope="session")
def operator_authority() -> CertificateAuthority:
    return CertificateAuthority()


@pytest.fixture
def client_directory(tmp_path: Path, operator_authority: CertificateAuthority) -> Path:
    """A user's client directory without its configuration, as ``shovey-trio user cert`` makes it."""
    directory = tmp_path / "client"
    directory.mkdir(mode=0o700)
    tls = operator_authority.client_tls("shovey://org/user/tester")
    assert tls.certificate is not None
    assert tls.private_key is not None
    (directory / "ca.crt").write_bytes(tls.ca)
    (directory / "client.crt").write_bytes(tls.certificate)
    key = directory / "client.key"
    key.touch(mode=0o600)
    key.write_bytes(tls.private_key)
    return directory


@pytest.fixture
async def rig(client_directory: Path, operator_authority: CertificateAuthority) -> AsyncIterator[OperatorRig]:
    controller = FakeController(
        {"web-1": True, "web-2": True, "db-1": True, "db-2": False},
        {"hello": hello, "mixed": mixed, "binary": binary, "hang": hang},
    )
    listener = Listener(
        name="control",
        address="127.0.0.1:0",
        serves=controller.serves(),
        tls=operator_authority.server_tls(mutual=True),
    )
    async with open_server([listener], map_error=status_of) as server, trio.open_nursery() as nursery:
        await nursery.start(controller.serve)
        address = f"127.0.0.1:{server.port('control')}"
        (client_directory / "config.toml").write_text(
            f'[client]\nserver = "{address}"\nserver_name = "localhost"\nca_file = "ca.crt"\n'
        )
        environ = {key: value for key, value in os.environ.items() if not key.startswith("SHOVEY")}
        environ |= {"SHOVEY_CONFIG": str(client_directory), "TZ": "UTC", "TERM": "xterm", "COLUMNS": "120"}
        made = OperatorRig(controller=controller, server=address, environ=environ)

        async def gated(run: FakeRun) -> int:
            run.write(b"before\n")
            await made.gate.wait()
            run.write(b"after\n")
            return 0

        controller.scripts["gated"] = gated
        yield made
        nursery.cancel_scope.cancel(reason="the test is over")
