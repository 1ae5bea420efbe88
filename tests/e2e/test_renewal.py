"""Certificates that run out, are revoked or change their issuer, while work goes on – on real programs."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from lab.limits import within
from shovey_agent.credentials import Credentials, CredentialStore
from shovey_agent.desk.trusted_keys import TrustedKeys
from shovey_agent.net.enroll import call_renew, renew
from shovey_trio.core.errors import Code
from shovey_trio.demo.commands import commands
from shovey_trio.demo.fleet import ORGANIZATION, Fleet, NodeSpec, run_program
from shovey_trio.demo.operator import Operator
from shovey_trio.demo.processes import ManagedProcess
from shovey_trio.identity.authority import CertificateAuthority, create_authority, issued_by, read_certificates
from shovey_trio.identity.files import read_secret, write_public, write_secret
from shovey_trio.identity.layout import ClientDirectory
from shovey_trio.identity.names import node_identity
from shovey_trio.identity.requests import load_private_key, make_private_key, make_request, private_key_pem
from shovey_trio.identity.root_keys import KeyRing
from shovey_trio.rpc.bridge import ClientTls, RpcError
from shovey_trio.rpc.client.client import ShoveyClient, open_client

pytestmark = pytest.mark.slow

DAY = 86_400.0


@pytest.fixture(scope="module")
def fleet(keep_fleet: Any) -> Iterator[Fleet]:
    def nodes(directory: Path) -> list[NodeSpec]:
        return [
            NodeSpec(name=name, whitelist=commands(str(directory)), settings={"reconnect.delay_max": "0.5s"})
            for name in ("a", "b")
        ]

    with keep_fleet(nodes, serf=False) as fleet:
        yield fleet


def give_certificate(fleet: Fleet, name: str, *, issued_at: float) -> Credentials:
    """Puts a certificate for the node's key on its disk that this controller's CA made at that time."""
    store = CredentialStore(fleet.nodes[name].state_dir)
    before = store.load()
    authority = CertificateAuthority.from_pem(fleet.data.ca_certificate.read_bytes(), read_secret(fleet.data.ca_key))
    issued = authority.issue_client(
        csr=make_request(load_private_key(before.private_key)),
        identity=node_identity(ORGANIZATION, name),
        now=issued_at,
    )
    store.save(replace(before, certificate_chain=issued.chain))
    return store.load()


@within(90)
async def test_a_stream_is_replaced_by_a_renewed_certificates_without_a_gap(fleet: Fleet, operator: Operator) -> None:
    node = fleet.nodes["a"]
    await node.agent.stop()
    due = give_certificate(fleet, "a", issued_at=time.time()).renew_at - time.time()
    soon = give_certificate(fleet, "a", issued_at=time.time() - due + 4)
    seen = len(node.agent.log.read_text())
    await node.agent.start()
    await logged(node.agent, "controller.attached", after=seen)
    (fleet.directory / "go").unlink(missing_ok=True)
    held = await operator.start("held", "a")
    await operator.reached(held, "a", "running")
    # From here on the node must be seen to be up, whatever becomes of its streams.
    since = (await operator.client.get_node("a")).status.since
    ended: list[str] = []

    async def work() -> None:
        while "certificate.renewed" not in node.agent.log.read_text()[seen:] or len(ended) < 10:
            ended.extend((await operator.run("hello", "a")).states().values())
        for _ in range(3):
            ended.extend((await operator.run("hello", "a")).states().values())

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(work)
        await logged(node.agent, "took_over=True", after=seen)
        (fleet.directory / "go").touch()
    assert set(ended) == {"succeeded"}
    assert (await operator.finished(held)).states() == {"a": "failed"}  # its own word: exit code 7
    lines = [f"line {number}" for number in range(1000)]
    assert (await operator.output(held, "a")).decode().splitlines() == ["began", *lines]
    after = await operator.client.get_node("a")
    assert after.attached
    assert after.status.since == since
    renewed = CredentialStore(node.state_dir).load()
    assert renewed.expires_at > soon.expires_at
    log = node.agent.log.read_text()[seen:]
    assert log.count("controller.attached") == 2
    assert "controller.unreachable" not in log
    assert "controller.refused" not in log


@within(60)
async def test_an_expired_certificate_is_renewed_and_one_that_expired_long_ago_is_not(
    fleet: Fleet, operator: Operator
) -> None:
    node = fleet.nodes["b"]
    good = CredentialStore(node.state_dir).load()
    await node.agent.stop()
    too_old = give_certificate(fleet, "b", issued_at=time.time() - 181 * DAY)
    assert too_old.expires_at < time.time() - 90 * DAY
    seen = len(node.agent.log.read_text())
    await node.agent.start()
    await logged(node.agent, "certificate.renewal_failed", after=seen)
    assert "expired" in node.agent.log.read_text()[seen:]
    await node.agent.stop()
    CredentialStore(node.state_dir).save(good)
    expired = give_certificate(fleet, "b", issued_at=time.time() - 170 * DAY)
    assert expired.expires_at < time.time()
    seen = len(node.agent.log.read_text())
    await node.agent.start()
    await logged(node.agent, "controller.attached", after=seen)
    assert CredentialStore(node.state_dir).load().expires_at > time.time()
    assert (await operator.run("true", "b")).states() == {"b": "succeeded"}


@within(60)
async def test_revoking_a_users_certificates_ends_what_they_watch_and_refuses_new_calls(
    fleet: Fleet, operator: Operator, tmp_path: Path
) -> None:
    await shovey_trio(fleet, "user", "cert", "ada", "--role", "viewer", "--out", str(tmp_path / "ada"))
    job_id = await operator.start("sleep", "b")
    await operator.reached(job_id, "b", "running")
    async with client_of(fleet, tmp_path / "ada") as client:
        async with client.watch_job(job_id) as watch, trio.open_nursery() as nursery:
            await watch.receive()
            nursery.start_soon(shovey_trio, fleet, "user", "revoke", "ada")
            with pytest.raises(RpcError) as caught:
                async for _ in watch:
                    pass
            assert caught.value.code is Code.UNAUTHENTICATED
        with pytest.raises(RpcError) as refused:
            await client.get_job(job_id)
        assert refused.value.code is Code.UNAUTHENTICATED
    await operator.client.cancel_job(job_id)
    assert (await operator.finished(job_id)).states() == {"b": "cancelled"}
    # The user is still there; another certificate lets them in again.
    await shovey_trio(fleet, "user", "cert", "ada", "--role", "viewer", "--out", str(tmp_path / "again"))
    async with client_of(fleet, tmp_path / "again") as client:
        await client.get_job(job_id)


@within(60)
async def test_revoking_a_nodes_certificates_cuts_its_streams_and_it_cannot_renew(
    fleet: Fleet, operator: Operator
) -> None:
    node = fleet.nodes["b"]
    job_id = await operator.start("sleep", "b")
    await operator.reached(job_id, "b", "running")
    seen = len(node.agent.log.read_text())
    await shovey_trio(fleet, "node", "revoke", "b")
    await logged(node.agent, "controller.refused", after=seen)
    assert "revoked" in node.agent.log.read_text()[seen:]
    await node.agent.stop()
    # Whoever has its key asks for another certificate with the one that is revoked.
    store = CredentialStore(node.state_dir)
    with pytest.raises(RpcError) as caught:
        await renew(store.load(), store, call_renew)
    assert caught.value.code is Code.UNAUTHENTICATED
    # Somebody else has the name now, and none of what was meant for the one before.
    await fleet.enroll("b", node.state_dir, again=True)
    await node.agent.start()
    [run] = (await operator.finished(job_id)).runs.values()
    assert run.cause == "agent_replaced"
    await fleet.wait_up()
    assert (await operator.run("true", "b")).states() == {"b": "succeeded"}


@within(60)
async def test_another_ca_is_taken_up_without_a_restart(fleet: Fleet, operator: Operator, tmp_path: Path) -> None:
    """First it is trusted beside the old one, then it issues; nobody is cut off in between."""
    old = fleet.data.ca_certificate.read_bytes()
    key = make_private_key()
    new = create_authority(organization=ORGANIZATION, key=key, now=time.time())
    write_public(fleet.data.ca_certificate, old + new.pem)
    await given_out(operator, old + new.pem)
    write_public(fleet.client_directory.ca_certificate, old + new.pem)  # users are given it by hand
    # Nodes hear of it when they renew: here by a certificate that is due.
    for name in ("a", "b"):
        node = fleet.nodes[name]
        await node.agent.stop()
        give_certificate(fleet, name, issued_at=time.time() - 70 * DAY)
        await node.agent.start()
        while CredentialStore(node.state_dir).load().ca_certificates != old + new.pem:  # noqa: ASYNC110
            await trio.sleep(0.05)
    await fleet.wait_up()
    since = (await operator.client.get_node("a")).status.since
    write_secret(fleet.data.ca_key, private_key_pem(key))
    write_public(fleet.data.ca_certificate, new.pem + old)
    await given_out(operator, new.pem + old)
    # The listeners have certificates of the new one, whom the agents believe by now; old certificates are believed too.
    for pair in (fleet.data.control, fleet.data.enroll):
        assert issued_by(read_certificates(pair.certificate.read_bytes())[0], new.certificate)
    assert (await operator.client.get_node("a")).status.since == since
    assert (await operator.run("true", "a", "b")).states() == {"a": "succeeded", "b": "succeeded"}
    await fleet.enroll("c", tmp_path / "c")
    issued = CredentialStore(tmp_path / "c").load()
    assert issued_by(read_certificates(issued.certificate_chain)[0], new.certificate)


@within(90)
async def test_an_installation_from_before_there_were_root_keys_gets_one_and_loses_nobody(
    fleet: Fleet, operator: Operator
) -> None:
    node = fleet.nodes["a"]
    await node.agent.stop()
    await fleet.controller.stop()
    ring = KeyRing(fleet.data, ORGANIZATION)
    active = ring.load().active
    ring.root_key_path.unlink()
    entry = {"key_id": active.key_id, "created_at": active.created_at}
    private = b64encode(active.private_key.private_bytes_raw()).decode()
    document = {"format": 1, "organization": ORGANIZATION, "serial": 3}
    keys = [{**entry, "state": "active", "private_key": private}]
    write_secret(fleet.data.signing_keys(ORGANIZATION), json.dumps({**document, "keys": keys}).encode())
    keys = [{**entry, "active": True, "public_key": b64encode(active.public_bytes).decode()}]
    store = CredentialStore(node.state_dir)
    write_secret(store.signing_keys, json.dumps({**document, "keys": keys}).encode())
    assert TrustedKeys.load(store.signing_keys, ORGANIZATION).root_public_key == b""
    await fleet.controller.start()
    await fleet.wait_ready()
    # The other agent holds on to its root, which is lost: it goes by the keys that this root has signed.
    seen = len(node.agent.log.read_text())
    await node.agent.start()
    await logged(node.agent, "controller.attached", after=seen)
    upgraded = ring.load()
    assert upgraded.active.key_id == active.key_id
    assert TrustedKeys.load(store.signing_keys, ORGANIZATION).root_public_key == upgraded.root_public_key
    assert (await operator.run("true", "a", "b")).states() == {"a": "succeeded", "b": "succeeded"}
    assert "keys.refused" in fleet.nodes["b"].agent.log.read_text()


def client_of(fleet: Fleet, directory: Path) -> AbstractAsyncContextManager[ShoveyClient]:
    server, _, server_name = fleet.client_tls()
    files = ClientDirectory(directory)
    tls = ClientTls(
        ca=files.ca_certificate.read_bytes(),
        certificate=files.identity.certificate.read_bytes(),
        private_key=files.identity.key.read_bytes(),
    )
    return open_client(server, tls, server_name=server_name)


async def shovey_trio(fleet: Fleet, *words: str) -> None:
    await run_program("shovey-trio", *words, "--data-dir", str(fleet.data.root))


async def given_out(operator: Operator, ca_certificates: bytes) -> None:
    """Waits until the controller tells new nodes to trust these CAs."""
    while (await operator.client.create_enrollment_token("probe")).ca_certificates != ca_certificates:  # noqa: ASYNC110
        await trio.sleep(0.1)


async def logged(process: ManagedProcess, words: str, *, after: int = 0) -> None:
    while words not in process.log.read_text()[after:]:
        process.check()
        await trio.sleep(0.05)
