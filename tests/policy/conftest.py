"""A real daemon with both doors, and every kind of caller there is."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from time import time
from typing import Any, Final

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from lab.chef_client import Answer, ChefClient, make_key, public_pem
from lab.shared_fleet import keep_fleet
from shovey_agent.credentials import CredentialStore
from shovey_trio.cli.controller.offline_store import run_with_store
from shovey_trio.core.chef.principals import ChefPrincipal, ChefPrincipalKind
from shovey_trio.core.errors import Code
from shovey_trio.core.jobs.model import Role
from shovey_trio.demo.fleet import Fleet, NodeSpec, free_port
from shovey_trio.demo.operator import open_operator
from shovey_trio.identity.authority import CertificateAuthority, create_authority
from shovey_trio.identity.names import Identity, node_identity, user_identity
from shovey_trio.identity.requests import make_private_key, make_request, private_key_pem
from shovey_trio.rpc.bridge import Channel, ClientTls, Method, RpcError
from shovey_trio.store.contract import Store
from shovey_trio.v1 import admin_service_pb2

ORGANIZATION: Final = "default"
OTHER: Final = "other"
#: Whose things are asked for, and who asks for them.
NODE, OTHER_NODE = "node-a", "node-b"
_UP_WITHIN: Final = 60.0
_WIRE_ROLES: Final = {
    "admin": admin_service_pb2.ROLE_ADMIN,
    "operator": admin_service_pb2.ROLE_OPERATOR,
    "viewer": admin_service_pb2.ROLE_VIEWER,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The daemon and all callers, by what they are.

    Attributes:
        tls: of gRPC.
        chef: of the shim.
        job: a job that has ended; its only run is on ``NODE``.
        run: the id of that run.
    """

    fleet: Fleet
    tls: Mapping[str, ClientTls]
    chef: Mapping[str, ChefClient]
    job: str
    run: str


@pytest.fixture(scope="package")
def site() -> Iterator[Site]:
    port = free_port()
    settings = {
        "rest.enabled": "true",
        "rest.listen": f"127.0.0.1:{port}",
        # Most callers here fail to prove who they are, all of them from one address.
        "limits.failed_auth_per_minute": "1000000",
        # Enrolment and renewal are asked for more often than one machine would.
        "limits.enroll_per_minute": "10000",
    }
    node = NodeSpec(name=NODE, whitelist={"hello": "echo hello"})
    with keep_fleet(lambda _: [node], serf=False, settings=settings) as fleet:
        yield trio.run(_furnish, fleet, port)


async def _furnish(fleet: Fleet, port: int) -> Site:
    with trio.fail_after(_UP_WITHIN):
        tls = await _make_tls(fleet)
        await trio.to_thread.run_sync(run_with_store, fleet.data.store, _write_chef_principals)
        chef = {who: ChefClient(port=port, user=who, key=_key(who)) for who in (*_CHEF, "stranger")}
        chef["none"] = ChefClient(port=port, user="admin", key=None)
        # Nobody has made a key for old nodes, which is what only a known caller is told.
        await _reload_until(fleet, {who: chef[who] for who in _CHEF}, 404)
        await trio.to_thread.run_sync(run_with_store, fleet.data.store, _revoke_chef_principals)
        await _reload_until(fleet, {"revoked": chef["revoked"]}, 401)
        async with open_operator(fleet) as operator:
            job = await operator.start("hello", NODE)
            run = (await operator.finished(job)).runs[NODE].id
    return Site(fleet=fleet, tls=tls, chef=chef, job=job, run=run)


# --- callers over gRPC ----------------------------------------------------------------------------------------

#: Everybody whom no certificate of this installation vouches for any more, or ever did.
STRANGERS: Final = (
    "none",
    "other-organization",
    "other-organization-node",
    "other-authority",
    "revoked-user",
    "revoked-node",
    "replaced-node",
    "unknown-user",
)
#: What the policy knows, and who of the callers it is.
ROLES: Final = {"admin": "admin", "operator": "operator", "viewer": "viewer", NODE: "node", OTHER_NODE: "node"}


async def _make_tls(fleet: Fleet) -> dict[str, ClientTls]:
    _, admin, _ = fleet.client_tls()
    made = {"none": ClientTls(ca=admin.ca)}
    async with fleet.open_client() as client:
        for name in (*_WIRE_ROLES, "revoked-user"):
            key = make_private_key()
            role = _WIRE_ROLES.get(name, admin_service_pb2.ROLE_ADMIN)
            answer = await client.create_user_certificate(f"the-{name}", role=role, csr=make_request(key))
            made[name] = _tls(admin.ca, answer.certificate_chain, key)
        await client.remove_user("the-revoked-user")
        made[NODE] = credentials_tls(fleet, NODE)
        for name in (OTHER_NODE, "revoked-node", "replaced-node"):
            await fleet.enroll(name, fleet.directory / name)
            made[name] = credentials_tls(fleet, name)
        await fleet.enroll("replaced-node", fleet.directory / "replaced-node", again=True)
        await client.remove_node("revoked-node")
    authority = CertificateAuthority.from_pem(fleet.data.ca_certificate.read_bytes(), fleet.data.ca_key.read_bytes())
    stranger = create_authority(organization=ORGANIZATION, key=make_private_key(), now=time())
    for name, issuer, identity in (
        ("other-organization", authority, user_identity(OTHER, "admin")),
        ("other-organization-node", authority, node_identity(OTHER, NODE)),
        ("unknown-user", authority, user_identity(ORGANIZATION, "nobody")),
        ("other-authority", stranger, user_identity(ORGANIZATION, "admin")),
    ):
        made[name] = _issue(admin.ca, issuer, identity)
    return made


def _issue(ca: bytes, issuer: CertificateAuthority, identity: Identity) -> ClientTls:
    key = make_private_key()
    return _tls(ca, issuer.issue_client(csr=make_request(key), identity=identity, now=time()).chain, key)


def _tls(ca: bytes, chain: bytes, key: ec.EllipticCurvePrivateKey) -> ClientTls:
    return ClientTls(ca=ca, certificate=chain, private_key=private_key_pem(key))


def credentials_tls(fleet: Fleet, name: str) -> ClientTls:
    """What a node that was enrolled presents."""
    held = CredentialStore(fleet.directory / name).load()
    return ClientTls(ca=held.ca_certificates, certificate=held.certificate_chain, private_key=held.private_key)


async def call(channel: Channel, method: Method[Any, Any], *requests: Any) -> Code:
    """Calls with these messages, or with an empty one; how it ended, OK when a stream has begun that stays open."""
    sent = requests or (method.request_type(),)
    try:
        if not (method.client_streaming or method.server_streaming):
            await channel.unary(method, *sent)
            return Code.OK
        arguments = () if method.client_streaming else sent
        async with channel.stream(method, *arguments) as stream:
            if method.client_streaming:
                for request in sent:
                    await stream.send(request)
                await stream.half_close()
            try:
                await stream.receive()
            except trio.EndOfChannel:
                pass
            except trio.BrokenResourceError:
                return Code.UNAVAILABLE
    except RpcError as error:
        return error.code
    return Code.OK


# --- callers over REST ----------------------------------------------------------------------------------------

#: Those with a Chef key here, and their role; ``revoked`` had one.
_CHEF: Final = {
    "admin": Role.ADMIN,
    "operator": Role.OPERATOR,
    "viewer": Role.VIEWER,
    NODE: Role.NODE,
    OTHER_NODE: Role.NODE,
    "revoked": Role.ADMIN,
}


@cache
def _key(name: str) -> RSAPrivateKey:
    return make_key()


async def _write_chef_principals(store: Store) -> None:
    await store.write_chef_principals(
        [
            ChefPrincipal(
                organization=ORGANIZATION,
                kind=ChefPrincipalKind.NODE if role is Role.NODE else ChefPrincipalKind.USER,
                name=name,
                role=role,
                public_key=public_pem(_key(name)),
                created_at=time(),
            )
            for name, role in _CHEF.items()
        ]
    )


async def _revoke_chef_principals(store: Store) -> None:
    assert await store.remove_chef_principal(ORGANIZATION, ChefPrincipalKind.USER, "revoked")


async def _reload_until(fleet: Fleet, clients: Mapping[str, ChefClient], status: int) -> None:
    """Tells the daemon to read its callers again, and waits until it has: until each of them is answered so."""
    assert fleet.controller.pid is not None
    os.kill(fleet.controller.pid, signal.SIGHUP)
    for client in clients.values():
        while (await client.get("/shovey/key")).status != status:
            await trio.sleep(0.05)


def outcome(answer: Answer) -> str:
    """Whether the shim has let a request through; what became of it then is no matter of the policy's."""
    match answer.status:
        case 401:
            return "unauthenticated"
        case 400 if "www-authenticate" in answer.headers:
            return "unauthenticated"
        case 403:
            return "denied"
        case 405 | 429 | 500 | 501 | 502 | 503:
            return f"failed with {answer.status}"
    return "allowed"


# --- the audit log --------------------------------------------------------------------------------------------


def audit_records(fleet: Fleet) -> list[dict[str, Any]]:
    """What is in the log, oldest first."""
    with closing(sqlite3.connect(f"file:{fleet.data.store}?mode=ro", uri=True)) as connection:
        return [json.loads(body) for (body,) in connection.execute("SELECT body FROM audit ORDER BY seq")]
