"""Runs scenarios, each on a daemon of its own, and gathers what they found into one document."""

from __future__ import annotations

import resource
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import trio

from shovey_trio.bench.figures import Figure
from shovey_trio.bench.machine import machine
from shovey_trio.bench.scenarios import load_scenario
from shovey_trio.bench.stage import BenchOptions, Stage, open_stage
from shovey_trio.config.operator import load_client_settings

# Per scenario, enrolment included. A scenario that takes longer hangs.
_DEADLINE = 1800.0


async def run_scenarios(
    names: Sequence[str], options: BenchOptions, tell: Callable[[str, Sequence[Figure]], None]
) -> dict[str, Any]:
    """The result of these scenarios as a document for JSON; ``tell`` hears of each when it is done.

    Everything that is started is ended, also when cancelled, and leaves nothing behind.

    Raises:
        TooSlowError: a scenario hung.
        ProcessFailed, SwarmFailed: a process died.
        WrongResult: the daemon did not do what was measured.
    """
    raise_file_limit()
    document: dict[str, Any] = {"machine": machine(), "options": asdict(options), "fsync": "on: WAL, synchronous=FULL"}
    document["scenarios"] = {}
    for name in names:
        measure = load_scenario(name)
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="shovey-bench-") as directory, trio.fail_after(_DEADLINE):
            async with open_stage(Path(directory), options) as stage:
                document["tls"] = await trio.to_thread.run_sync(_negotiated_tls, stage)
                figures = await measure(stage)
        document["scenarios"][name] = {
            "figures": [each.document() for each in figures],
            "seconds": round(time.perf_counter() - began, 1),
        }
        tell(name, figures)
    return document


def raise_file_limit() -> int:
    """Lets this process and those it starts open as many files as they may: an agent is one here and one in the daemon.

    Returns:
        The limit.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _negotiated_tls(stage: Stage) -> str:
    """The version that the daemon and a client which takes any agree on; blocking."""
    directory = stage.fleet.client_directory
    settings = load_client_settings(directory.configuration, environ={}).client
    context = ssl.create_default_context(cafile=str(directory.ca_certificate))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(directory.identity.certificate, directory.identity.key)
    host, _, port = settings.server.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=settings.server_name or host) as encrypted,
    ):
        return str(encrypted.version())
