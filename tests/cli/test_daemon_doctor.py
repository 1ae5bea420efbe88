"""Doctor against real set-ups, real listeners and a real serf agent."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import ssl
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from shovey_trio.cli.controller.doctor import diagnose
from shovey_trio.cli.controller.doctor_checks import Finding, Status, check_admin, check_certificates, check_clock
from shovey_trio.cli.controller.main import run
from shovey_trio.cli.controller.offline_store import run_with_store
from shovey_trio.config.server import load_server_settings
from shovey_trio.core.jobs.model import Node
from shovey_trio.identity.authority import DAY
from shovey_trio.identity.layout import DataDirectory
from shovey_trio.store.contract import Store

# Only as hard limits: everything here waits for an event.
LIMIT = 30.0
NODE = Node(name="web-1", organization="acme", enrolled_at=1.0, presence_since=1.0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("SHOVEY_TRIO")]:
        monkeypatch.delenv(name)
    root = tmp_path / "data"
    listen = [f"--{name}-listen=127.0.0.1:{free_port()}" for name in ("control", "enroll")]
    assert run(["init", "--data-dir", str(root), "--organization", "acme", *listen]) == 0
    monkeypatch.setenv("SHOVEY_TRIO__SERF__ENABLED", "false")
    return root


def of(findings: Sequence[Finding], check: str) -> Sequence[Finding]:
    return [finding for finding in findings if finding.check == check]


def add_nodes(data: Path, nodes: Sequence[Node]) -> None:
    async def work(store: Store) -> None:
        for node in nodes:
            await store.write_node(node)

    run_with_store(DataDirectory(data).store, work)


def test_a_fresh_set_up_is_healthy(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["doctor", "--data-dir", str(data)]) == 0
    out = capsys.readouterr().out
    assert "0 failed, 0 warned" in out
    assert "1 users" in out


def test_json_has_every_finding_with_its_advice(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    DataDirectory(data).ca_key.chmod(0o644)
    capsys.readouterr()
    assert run(["doctor", "--data-dir", str(data), "-o", "json"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    (files,) = [finding for finding in findings if finding["check"] == "files"]
    assert files["status"] == "fail"
    assert "chmod 0600" in files["message"]
    assert {"check", "status", "message", "advice"} == set(files)


def test_a_wrong_configuration_is_the_only_finding(data: Path) -> None:
    (finding,) = diagnose(None, data, ("jobs.kill_grase=1", "log.level=loud"))
    assert (finding.check, finding.status) == ("configuration", Status.FAIL)
    assert "2 errors" in finding.message


def test_nothing_there_is_said_with_what_to_do_and_nothing_is_made(tmp_path: Path) -> None:
    root = tmp_path / "none"
    findings = diagnose(None, root, ("serf.enabled=false",))
    for check in ("files", "certificates", "signing keys", "store"):
        assert of(findings, check)[0].status is Status.FAIL, check
    assert of(findings, "files")[0].advice == f"shovey-trio init --data-dir {root}"
    assert not root.exists()


def test_a_damaged_store_and_damaged_keys_fail(data: Path) -> None:
    directory = DataDirectory(data)
    directory.store.write_bytes(b"not a database" * 1000)
    directory.signing_keys("acme").write_text("{}")
    findings = diagnose(None, data, ())
    assert of(findings, "store")[0].status is Status.FAIL
    assert of(findings, "signing keys")[0].status is Status.FAIL


def test_an_older_store_is_reported_and_not_migrated(data: Path) -> None:
    store = DataDirectory(data).store
    with sqlite3.connect(store) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0000'")
    connection.close()
    before = store.read_bytes()
    (finding,) = of(diagnose(None, data, ()), "store")
    assert finding.status is Status.WARN
    assert "schema 0000" in finding.message
    assert store.read_bytes() == before


@pytest.mark.parametrize(
    ("days", "status", "words"),
    [
        (300, Status.OK, "holds until"),
        (340, Status.WARN, "holds until"),
        (370, Status.WARN, "you can renew it: shovey login renew"),
    ],
)
def test_the_admins_certificate_is_told_from_30_days_before_its_end(
    data: Path, days: float, status: Status, words: str
) -> None:
    settings = load_server_settings(DataDirectory(data).configuration, environ={})
    [finding] = check_admin(settings, time.time() + days * DAY)
    assert (finding.status, words in finding.message) == (status, True)
    assert finding.advice == ("" if status is Status.OK else f"shovey --config {data}/admin login renew")


def test_certificates_warn_before_they_fail(data: Path) -> None:
    settings = load_server_settings(DataDirectory(data).configuration, environ={})
    now = time.time()

    def statuses(at: float) -> list[Status]:
        return [finding.status for finding in check_certificates(settings, at)]

    assert statuses(now) == [Status.OK, Status.OK, Status.OK]
    assert statuses(now + 300 * DAY) == [Status.OK, Status.WARN, Status.WARN]
    assert statuses(now + 366 * DAY) == [Status.OK, Status.FAIL, Status.FAIL]
    assert statuses(now + 3_300 * DAY)[0] is Status.WARN
    assert statuses(now + 3_651 * DAY)[0] is Status.FAIL


def test_an_advertised_name_that_the_certificate_lacks_is_a_warning(data: Path) -> None:
    findings = of(diagnose(None, data, ("server.advertise_control=other.example.com:1",)), "certificates")
    (warned,) = [finding for finding in findings if finding.status is Status.WARN]
    assert "other.example.com" in warned.message


@pytest.mark.parametrize(
    ("ahead", "status"), [(None, Status.OK), (-60.0, Status.OK), (60.0, Status.WARN), (3600.0, Status.FAIL)]
)
def test_a_clock_that_went_back_is_noticed_by_what_is_stored(ahead: float | None, status: Status) -> None:
    now = 1_767_225_600.0
    node = replace(NODE, last_seen_at=None if ahead is None else now + ahead)
    (finding,) = check_clock([node], now)
    assert finding.status is status


@pytest.mark.slow  # doctor gives whoever is silent five seconds
def test_a_port_in_foreign_hands_fails(data: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        other.setblocking(False)
        port = other.getsockname()[1]
        started = time.monotonic()
        (finding,) = of(diagnose(None, data, (f"server.control_listen=127.0.0.1:{port}",)), "control port")
    assert finding.status is Status.FAIL
    assert "does not answer" in finding.message
    assert time.monotonic() - started < LIMIT


def test_an_address_of_another_host_fails(data: Path) -> None:
    (finding,) = of(diagnose(None, data, ("server.control_listen=192.0.2.1:7443",)), "control port")
    assert finding.status is Status.FAIL
    assert "must be an address of this host" in finding.advice


async def _diagnose_while_served(data: Path, identity: Path, port_of: str) -> Finding:
    """What doctor says of a port that a TLS server with the certificate of the set-up ``identity`` serves."""
    pair = getattr(DataDirectory(identity), port_of)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    context.set_alpn_protocols(["h2"])

    async def handle(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError:
            return  # the client did not like us, which is what some of these tests are about

    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, handle, listeners)
            listener = listeners[0].transport_listener
            assert isinstance(listener, trio.SocketListener)
            port = listener.socket.getsockname()[1]
            address = (f"server.{port_of}_listen=127.0.0.1:{port}",)
            findings = await trio.to_thread.run_sync(diagnose, None, data, address)
            nursery.cancel_scope.cancel(reason="doctor has answered")
    (finding,) = of(findings, f"{port_of} port")
    return finding


@pytest.mark.parametrize("port_of", ["control", "enroll"])
async def test_a_port_that_this_set_up_serves_is_fine(data: Path, port_of: str) -> None:
    finding = await _diagnose_while_served(data, data, port_of)
    assert finding.status is Status.OK
    assert "served by this set-up" in finding.message


async def test_a_port_that_another_set_up_serves_fails(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert await trio.to_thread.run_sync(run, ["init", "--data-dir", str(other), "--organization", "acme"]) == 0
    finding = await _diagnose_while_served(data, other, "control")
    assert finding.status is Status.FAIL
    assert "not of our CA" in finding.message


# --- serf -----------------------------------------------------------------------------------------------------


@pytest.fixture
def serf_rpc(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A real serf agent named acme:ctl; the parameter is its configuration. Its RPC address."""
    if shutil.which("serf") is None:
        pytest.skip("serf is not installed")
    config = tmp_path / "serf.json"
    rpc, gossip = free_port(), free_port()
    config.write_text(json.dumps(getattr(request, "param", {})))
    command = ["serf", "agent", "-node=acme:ctl", f"-bind=127.0.0.1:{gossip}", f"-rpc-addr=127.0.0.1:{rpc}"]
    process = subprocess.Popen(
        [*command, f"-config-file={config}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + LIMIT
        while True:
            assert process.poll() is None, "serf ended at once"
            assert time.monotonic() < deadline, "serf does not listen"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", rpc)) == 0:
                    break
            time.sleep(0.05)
        yield f"127.0.0.1:{rpc}"
    finally:
        process.kill()
        process.wait()


def serf_findings(data: Path, address: str, *more: str) -> Sequence[Finding]:
    findings = diagnose(None, data, ("serf.enabled=true", f"serf.address={address}", *more))
    return [*of(findings, "serf"), *of(findings, "node names")]


@pytest.mark.serf
def test_serf_is_reached_and_its_limit_is_asked_for(data: Path, serf_rpc: str) -> None:
    add_nodes(data, [NODE])
    agent, limit, names = serf_findings(data, serf_rpc)
    assert "agent acme:ctl, 1 members, gossip not encrypted" in agent.message
    assert (limit.status, limit.message) == (Status.OK, "queries of up to 1024 bytes")
    assert (names.status, names.message) == (Status.OK, "1 names fit a serf query")


@pytest.mark.serf
@pytest.mark.parametrize(
    ("serf_rpc", "status", "advice"),
    [
        ({"query_size_limit": 600}, Status.FAIL, "set serf.query_size_limit = 600"),
        ({"query_size_limit": 9000}, Status.WARN, "set it to 1395 or less"),
    ],
    indirect=["serf_rpc"],
)
def test_a_limit_that_hurts_is_found(data: Path, serf_rpc: str, status: Status, advice: str) -> None:
    _, limit, _ = serf_findings(data, serf_rpc)
    assert limit.status is status
    assert advice in limit.advice


@pytest.mark.serf
@pytest.mark.parametrize("serf_rpc", [{"query_size_limit": 512}], indirect=True)
def test_nodes_that_no_query_can_name_are_listed(data: Path, serf_rpc: str) -> None:
    # The store may hold names from elsewhere, which enrolment would not have given.
    add_nodes(data, [NODE, replace(NODE, name="n" * 300)])
    *_, names = serf_findings(data, serf_rpc, "serf.query_size_limit=512")
    assert names.status is Status.FAIL
    assert "acme:nnn" in names.message
    assert "web-1" not in names.message


@pytest.mark.serf
def test_another_name_of_the_agent_is_a_warning(data: Path, serf_rpc: str) -> None:
    _, warned, *_ = serf_findings(data, serf_rpc, "serf.node_name=acme:other")
    assert warned.status is Status.WARN
    assert "'acme:ctl'" in warned.message


@pytest.mark.serf
@pytest.mark.parametrize("serf_rpc", [{"rpc_auth": "open sesame"}], indirect=True)
def test_serfs_rpc_key_is_needed_and_read_from_its_file(data: Path, serf_rpc: str, tmp_path: Path) -> None:
    (refused,) = serf_findings(data, serf_rpc)
    assert refused.status is Status.FAIL
    assert "serf.auth_key_file" in refused.advice
    key = tmp_path / "serf.key"
    key.touch(mode=0o600)
    key.write_text("open sesame\n")
    agent, *_ = serf_findings(data, serf_rpc, f"serf.auth_key_file={key}")
    assert agent.status is Status.OK


def test_no_serf_is_one_failure_with_what_to_do(data: Path) -> None:
    (finding,) = serf_findings(data, f"127.0.0.1:{free_port()}")
    assert finding.status is Status.FAIL
    assert "start the serf agent" in finding.advice


def test_something_else_on_serfs_port_is_told_from_serf(data: Path) -> None:
    async def main() -> Sequence[Finding]:
        async def garbage(stream: trio.SocketStream) -> None:
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
                nursery.start_soon(trio.serve_listeners, garbage, [listener])
                address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
                findings = await trio.to_thread.run_sync(serf_findings, data, address)
                nursery.cancel_scope.cancel(reason="doctor has answered")
        return findings

    (finding,) = trio.run(main)
    assert finding.status is Status.FAIL
    assert "serf's RPC port" in finding.advice
