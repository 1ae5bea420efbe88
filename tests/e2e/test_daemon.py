"""The daemon as a process: signals, exit codes, what it listens to, and what it does with garbage."""

from __future__ import annotations

import random
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from lab.limits import within
from shovey_agent.credentials import CredentialStore
from shovey_trio.core.errors import Exit, Unreachable
from shovey_trio.demo.commands import commands
from shovey_trio.demo.fleet import ORGANIZATION, Fleet, NodeSpec
from shovey_trio.demo.operator import Operator
from shovey_trio.demo.processes import ManagedProcess, program
from shovey_trio.identity.root_keys import KeyRing, rotation
from shovey_trio.identity.tls import issue_listener_files, load_controller_tls
from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import ClientTls, RpcError, open_channel
from shovey_trio.rpc.client.client import open_client
from shovey_trio.v1 import job_pb2
from shovey_trio.v1.agent_service_pb2 import PushOutputRequest
from shovey_trio.v1.job_service_pb2 import ExplainRunRequest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fleet(keep_fleet: Any) -> Iterator[Fleet]:
    def nodes(directory: Path) -> list[NodeSpec]:
        return [
            NodeSpec(name="a", whitelist=commands(str(directory)), settings={"reconnect.delay_max": "0.5s"}),
        ]

    with keep_fleet(
        nodes, serf=False, settings={"server.drain_timeout": "300s", "presence.stream_lost_after": "0.5s"}
    ) as fleet:
        yield fleet


@within(60)
async def test_hup_takes_a_new_certificate_and_breaks_no_stream(fleet: Fleet, operator: Operator) -> None:
    since = (await operator.client.get_node("a")).status.since
    authority = load_controller_tls(fleet.data).authority
    before = await _served_certificate(fleet, "control")
    issue_listener_files(authority, fleet.data.control, hosts=["127.0.0.1"], now=time.time())
    await _reload(fleet)
    after = await _served_certificate(fleet, "control")
    assert after == fleet.data.control.certificate.read_text().partition("-----END")[0] + "-----END CERTIFICATE-----\n"
    assert after != before
    assert (await operator.client.get_node("a")).status.since == since
    server, tls, name = fleet.client_tls()
    async with open_client(server, tls, server_name=name) as client:
        assert (await client.get_node("a")).attached


@within(60)
async def test_hup_with_a_damaged_file_leaves_the_old_in_force(fleet: Fleet, operator: Operator) -> None:
    certificate = fleet.data.enroll.certificate
    good = certificate.read_bytes()
    before = await _served_certificate(fleet, "enroll")
    certificate.write_bytes(b"garbage")
    try:
        await _reload(fleet, "controller.reload_failed")
    finally:
        certificate.write_bytes(good)
    assert await _served_certificate(fleet, "enroll") == before
    assert (await operator.run("true", "a")).states() == {"a": "succeeded"}


@within(60)
async def test_hup_takes_a_new_signing_key_and_tells_the_agents_before_it_is_used(
    fleet: Fleet, operator: Operator
) -> None:
    ring = KeyRing(fleet.data, ORGANIZATION)
    changed = ring.apply(rotation(time.time()))
    await _reload(fleet)
    published = await operator.client.get_signing_keys()
    assert published.serial == changed.keys.serial
    assert [key.key_id for key in published.keys if key.active] == [changed.active.key_id]
    assert (await operator.run("true", "a")).states() == {"a": "succeeded"}


@within(60)
async def test_garbage_on_the_listeners_harms_nobody(fleet: Fleet, operator: Operator) -> None:
    noise = random.Random(7)
    client_preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for listener in ("control", "enroll"):
        for data in (
            noise.randbytes(4096),
            b"GET / HTTP/1.1\r\n\r\n",
            client_preface + b"\xff" * 512,
            b"\x16\x03\x01",
            b"",
        ):
            stream = await trio.open_tcp_stream(*_address(fleet, listener))
            async with stream:
                try:
                    await stream.send_all(data)
                    with trio.move_on_after(0.2):
                        while await stream.receive_some(4096):
                            pass
                except trio.BrokenResourceError:
                    pass
    assert (await operator.run("true", "a")).states() == {"a": "succeeded"}
    assert fleet.controller.pid is not None


@within(60)
@pytest.mark.parametrize("listener", ["control", "enroll"])
async def test_tls_1_2_is_refused_and_1_3_is_not(fleet: Fleet, listener: str) -> None:
    def handshake(version: ssl.TLSVersion) -> str | None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = context.maximum_version = version
        with socket.create_connection(_address(fleet, listener), timeout=10) as raw:
            try:
                with context.wrap_socket(raw) as secured:
                    return secured.version()
            except (ssl.SSLError, ConnectionError):
                return None

    assert await trio.to_thread.run_sync(handshake, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    assert await trio.to_thread.run_sync(handshake, ssl.TLSVersion.TLSv1_2) is None


@within(60)
async def test_a_second_daemon_on_the_same_directory_or_port_does_not_start(fleet: Fleet, tmp_path: Path) -> None:
    second = ManagedProcess(
        [*program("shovey-trio"), "serve", "--data-dir", str(fleet.data.root), "--set", "serf.enabled=false"],
        log=tmp_path / "second.log",
    )
    await second.start()
    assert await second.wait() != 0
    assert "Traceback" not in second.tail(100)
    assert second.tail(100).strip()


@within(60)
async def test_a_daemon_without_a_data_directory_says_so_and_exits_with_a_documented_code(tmp_path: Path) -> None:
    serve = ManagedProcess(
        [*program("shovey-trio"), "serve", "--data-dir", str(tmp_path / "absent")], log=tmp_path / "log"
    )
    await serve.start()
    assert await serve.wait() in {code.value for code in Exit} - {0, Exit.INTERNAL.value}
    assert "absent" in serve.tail()
    assert "Traceback" not in serve.tail(100)


@within(60)
async def test_an_agent_that_was_never_enrolled_says_so(tmp_path: Path) -> None:
    whitelist = tmp_path / "whitelist.json"
    whitelist.write_text('{"whitelist": {}}')
    agent = ManagedProcess(
        [
            *program("shovey-agent"),
            *("run", "--state-dir", str(tmp_path / "state"), "--whitelist", str(whitelist)),
            *("--set", "serf.enabled=false"),
        ],
        log=tmp_path / "log",
    )
    await agent.start()
    assert await agent.wait() in {code.value for code in Exit} - {0, Exit.INTERNAL.value}
    assert "enroll" in agent.tail()
    assert "Traceback" not in agent.tail(100)


@within(90)
async def test_a_planned_stop_takes_seconds_and_watchers_resume_and_nodes_keep_their_presence(
    fleet: Fleet, operator: Operator
) -> None:
    job_id = await operator.start("sleep", "a")
    await operator.reached(job_id, "a", "running")
    before = [status async for status in operator.client.list_node_statuses("a")]
    lost: list[RpcError] = []
    silent = CredentialStore(fleet.nodes["a"].state_dir).load()
    tls = ClientTls(ca=silent.ca_certificates, certificate=silent.certificate_chain, private_key=silent.private_key)
    async with operator.client.watch_job(job_id, on_lost=lost.append) as watch:
        first = await watch.receive()
        assert first.snapshot.complete
        # A stream of the node's that says nothing more: the stop takes longer than a lost stream is forgiven.
        chunk = job_pb2.OutputChunk(stream=job_pb2.OUTPUT_STREAM_STDOUT, data=b"x")
        async with (
            open_channel(fleet.listeners["control"], tls) as channel,
            channel.stream(methods.PUSH_OUTPUT) as output,
        ):
            await output.send(PushOutputRequest(run_id="none", chunk=chunk))
            assert (await output.receive()).closed
            began = trio.current_time()
            fleet.controller.send_signal(signal.SIGTERM)
            assert await fleet.controller.wait() == 0
            assert 0.6 < trio.current_time() - began < 8
        await fleet.controller.start()
        await fleet.wait_up()
        assert [status async for status in operator.client.list_node_statuses("a")] == before
        await operator.client.cancel_job(job_id)
        # Changes alone, no second snapshot: it was resumed where it was cut.
        assert {event.WhichOneof("event") async for event in watch} <= {"job_changed", "run_changed"}
    assert len(lost) == 1
    assert (await operator.finished(job_id)).states() == {"a": "cancelled"}


@within(90)
async def test_a_second_term_stops_a_drain_at_once(fleet: Fleet, operator: Operator) -> None:
    # A node that does not answer holds a question up for 5 s, and with it the drain (300 s in this fleet).
    fleet.nodes["a"].agent.send_signal(signal.SIGSTOP)
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(Unreachable):
                await operator.client.explain_run(ExplainRunRequest(command="true", node="a"))

        nursery.start_soon(ask)
        # On the same connection, behind the question.
        await operator.client.get_server_info()
        drains = _count(fleet, "controller.draining")
        fleet.controller.send_signal(signal.SIGTERM)
        while _count(fleet, "controller.draining") == drains:  # noqa: ASYNC110
            await trio.sleep(0.05)
        with trio.move_on_after(0.5) as patience:
            await fleet.controller.wait()
        assert patience.cancelled_caught, "the drain waits"
        fleet.controller.send_signal(signal.SIGTERM)
        with trio.fail_after(4):
            assert await fleet.controller.wait() == 0
    fleet.nodes["a"].agent.send_signal(signal.SIGCONT)
    await fleet.controller.start()
    await fleet.wait_up()


async def _reload(fleet: Fleet, outcome: str = "controller.reloaded") -> None:
    before = _count(fleet, outcome)
    fleet.controller.send_signal(signal.SIGHUP)
    while _count(fleet, outcome) == before:  # noqa: ASYNC110
        await trio.sleep(0.05)


def _count(fleet: Fleet, event: str) -> int:
    return fleet.controller.log.read_text().count(event)


def _address(fleet: Fleet, listener: str) -> tuple[str, int]:
    option = fleet.listeners[listener]
    host, _, port = option.rpartition(":")
    return host, int(port)


async def _served_certificate(fleet: Fleet, listener: str) -> str:
    return await trio.to_thread.run_sync(ssl.get_server_certificate, _address(fleet, listener))
