"""A user's certificate near and after its end, of another installation, revoked: on a real daemon, by ``shovey``."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from lab.limits import within
from shovey_trio.cli.controller.offline_store import run_with_store
from shovey_trio.config.operator import load_client_settings
from shovey_trio.core.errors import Exit
from shovey_trio.demo.fleet import Fleet, NodeSpec, run_program
from shovey_trio.demo.processes import program
from shovey_trio.identity.authority import DAY, CertificateAuthority, serial_of
from shovey_trio.identity.files import write_public
from shovey_trio.identity.layout import ClientDirectory
from shovey_trio.identity.requests import load_private_key, make_request
from shovey_trio.identity.user_certificate import UserCertificate
from shovey_trio.store.contract import Store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fleet(keep_fleet: Any) -> Iterator[Fleet]:
    with keep_fleet(lambda _: [NodeSpec(name="a", whitelist={"true": "true"})], serf=False) as fleet:
        yield fleet


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """A user with a client directory, at a prompt."""

    name: str
    directory: ClientDirectory

    @property
    def certificate(self) -> UserCertificate:
        return load_client_settings(self.directory.configuration, environ={}).read_certificate()

    async def types(self, *words: str) -> Said:
        done = await trio.run_process(
            [*program("shovey"), "--config", str(self.directory.root), *words],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            stdin=b"",
        )
        return Said(code=done.returncode, out=done.stdout.decode(), err=done.stderr.decode())


async def person(fleet: Fleet, name: str) -> Person:
    out = fleet.directory / f"client-{name}"
    words = ("cert", name, "--role", "operator", "--out", str(out))
    await run_program("shovey-trio", "user", *words, "--data-dir", str(fleet.data.root))
    return Person(name=name, directory=ClientDirectory(out))


async def let_it_end(fleet: Fleet, somebody: Person, *, days_ago: float) -> UserCertificate:
    """Gives somebody the certificate they would have if it had been issued so that it ended then."""
    own = somebody.certificate
    authority = CertificateAuthority.from_pem(fleet.data.ca_certificate.read_bytes(), fleet.data.ca_key.read_bytes())
    issued = authority.issue_client(
        csr=make_request(load_private_key(own.private_key)),
        identity=own.identity,
        now=time.time() - (365 + days_ago) * DAY,
    )

    async def record(store: Store) -> None:
        await store.write_certificate(
            serial=issued.serial,
            organization=own.identity.organization,
            subject=own.identity.label,
            expires_at=issued.expires_at,
        )

    await trio.to_thread.run_sync(lambda: run_with_store(fleet.data.store, record))
    write_public(own.file, issued.chain)
    return somebody.certificate


@within(90)
async def test_from_30_days_before_its_end_every_command_says_so_once(fleet: Fleet) -> None:
    ann = await person(fleet, "ann")
    assert (await ann.types("node", "list")).err == ""
    await let_it_end(fleet, ann, days_ago=-29.5)
    for words in (("node", "list"), ("job", "list"), ("version",), ("job", "start", "true", "a")):
        said = await ann.types(*words)
        warnings = [line for line in said.err.splitlines() if line.startswith("warning: ")]
        assert said.code == 0
        assert len(warnings) == 1
        assert "client.crt of user/ann of" in warnings[0]
        assert warnings[0].endswith("in 29 days; renew it: shovey login renew")


@within(90)
@pytest.mark.parametrize("days_ago", [-10.0, 89.0])
async def test_login_renew_exchanges_a_certificate_that_ends_or_has_ended_for_the_same_key(
    fleet: Fleet, days_ago: float
) -> None:
    bob = await person(fleet, f"bob{days_ago:.0f}".replace("-", "_"))
    before = await let_it_end(fleet, bob, days_ago=days_ago)
    said = await bob.types("login", "renew")
    assert (said.code, said.err) == (0, "")
    after = bob.certificate
    assert after.expires_at > time.time() + 364 * DAY
    assert (after.private_key, after.identity) == (before.private_key, before.identity)
    assert (await bob.types("job", "start", "true", "a")).code == 0
    export = await run_program("shovey-trio", "audit", "export", "--data-dir", str(fleet.data.root))
    renewed = [r for r in map(json.loads, export.splitlines()) if r["action"] == "certificate.renewed"]
    assert [r["detail"]["replaces"] for r in renewed if r["principal"] == f"user/{bob.name}"] == [
        serial_of(before.leaf)
    ]


@within(60)
async def test_nothing_is_renewed_before_it_is_due_unless_asked_for(fleet: Fleet) -> None:
    cid = await person(fleet, "cid")
    before = cid.certificate.chain
    assert "nothing to do yet" in (await cid.types("login", "renew")).out
    assert cid.certificate.chain == before
    assert (await cid.types("login", "renew", "--now")).code == 0
    assert cid.certificate.chain != before


@within(60)
async def test_a_revoked_certificate_is_not_renewed_and_what_is_there_stays(fleet: Fleet) -> None:
    eve = await person(fleet, "eve")
    before = eve.certificate.chain
    await run_program("shovey-trio", "user", "revoke", "eve", "--data-dir", str(fleet.data.root))
    said = await eve.types("login", "renew", "--now")
    assert (said.code, "UNAUTHENTICATED" in said.err) == (Exit.DENIED.value, True)
    assert eve.certificate.chain == before


@within(60)
async def test_an_expired_certificate_says_which_since_when_and_what_to_do(fleet: Fleet) -> None:
    dan = await person(fleet, "dan")
    ended = await let_it_end(fleet, dan, days_ago=1)
    day = ended.leaf.not_valid_after_utc.strftime("%Y-%m-%d %H:%M UTC")
    [line] = (await dan.types("node", "list")).err.splitlines()
    assert line.startswith(f"error: the certificate {dan.directory.identity.certificate} of user/dan of ")
    assert f"expired on {day}; until " in line
    assert line.endswith("you can renew it: shovey login renew (CERTIFICATE_UNUSABLE)")
    await let_it_end(fleet, dan, days_ago=91)
    said = await dan.types("node", "list")
    assert "ask an admin for another one: shovey-trio user cert NAME" in said.err
    assert said.code == Exit.DENIED.value


@within(60)
async def test_a_certificate_of_another_installation_says_so(fleet: Fleet, tmp_path: Path) -> None:
    await run_program("shovey-trio", "init", "--data-dir", str(tmp_path / "other"), "--organization", "elsewhere")
    theirs = ClientDirectory(tmp_path / "other" / "admin")
    here = fleet.listeners["control"]

    # As a whole: what answers there is not theirs.
    stranger = Person(name="admin", directory=theirs)
    said = await stranger.types("--server", here, "node", "list")
    assert f"has a certificate that {theirs.ca_certificate} does not vouch for" in said.err
    assert said.code == Exit.UNREACHABLE.value
    # With the CA of here beside it: their certificate is not of this CA.
    ours = shutil.copy(fleet.data.ca_certificate, tmp_path / "here.crt")
    said = await stranger.types("--server", here, "--ca", ours, "node", "list")
    assert "was issued by 'shovey-trio CA of elsewhere'" in said.err
    assert "another installation's; ask an admin" in said.err
    # With both CAs: it is the controller that refuses.
    both = tmp_path / "both.crt"
    both.write_bytes(theirs.ca_certificate.read_bytes() + fleet.data.ca_certificate.read_bytes())
    said = await stranger.types("--server", here, "--ca", str(both), "node", "list")
    assert f"it refuses the certificate {theirs.identity.certificate} of user/admin of elsewhere" in said.err
    assert "issued by 'shovey-trio CA of elsewhere': it is of another installation" in said.err


@within(60)
async def test_a_controller_that_is_not_there_is_told_from_one_that_is_no_controller(fleet: Fleet) -> None:
    fay = await person(fleet, "fay")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        # Nothing is accepted, the kernel alone says hello.
        said = await fay.types("--server", f"127.0.0.1:{silent.getsockname()[1]}", "version")
        assert "does not answer within 3 s" in said.err
        address = silent.getsockname()
    said = await fay.types("--server", f"127.0.0.1:{address[1]}", "version")
    assert f"nothing answers at 127.0.0.1:{address[1]}" in said.err
    assert said.err.count("\n") == 1
    assert said.code == Exit.UNREACHABLE.value
