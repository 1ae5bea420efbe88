"""Enrolment and renewal against a certificate authority of ours in the controller's place: no network, real files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from shovey_agent.credentials import CredentialStore, NotEnrolled
from shovey_agent.desk.trusted_keys import TrustedKeys
from shovey_agent.net.enroll import (
    AlreadyEnrolled,
    EnrollAnswer,
    EnrollCall,
    RenewAnswer,
    RenewCall,
    Split,
    enroll,
    renew,
)
from shovey_trio.core.errors import NodeProtocolError, Unreachable
from shovey_trio.core.trust.enrollment import JoinTicket, encode_token
from shovey_trio.core.trust.key_sets import KeySetRefused
from shovey_trio.core.trust.key_trust import PublishedKeys
from shovey_trio.identity.authority import CertificateAuthority, create_authority
from shovey_trio.identity.files import FileUnusable, InsecureFile
from shovey_trio.identity.names import node_identity
from shovey_trio.identity.renewal import verify_renewal
from shovey_trio.identity.requests import make_private_key, make_request, read_request
from shovey_trio.identity.root_keys import make_keys

NOW = 1_767_225_600.0
SECRET = bytes(range(32))


class Controller:
    """The controller's side of both calls."""

    def __init__(self, name: str = "web-1") -> None:
        self.authority = create_authority(organization="acme", key=make_private_key(), now=NOW)
        self.root = Ed25519PrivateKey.generate()
        self.keys = make_keys("acme", self.root, now=NOW).published()
        self.vouches_for_root = True
        self.name = name
        self.calls: list[EnrollCall | RenewCall] = []

    @property
    def join(self) -> JoinTicket:
        return JoinTicket(
            organization="acme",
            node="web-1",
            enroll_address="127.0.0.1:7444",
            ca_certificate=self.authority.certificate.public_bytes(Encoding.DER),
            secret=SECRET,
            root_public_key=self.keys.root_public_key if self.vouches_for_root else b"",
        )

    async def enroll(self, call: EnrollCall) -> EnrollAnswer:
        self.calls.append(call)
        await trio.lowlevel.checkpoint()
        issued = self.authority.issue_client(csr=call.csr, identity=node_identity("acme", self.name), now=NOW)
        return EnrollAnswer(
            certificate_chain=issued.chain,
            ca_certificates=self.authority.pem,
            signing_keys=self.keys,
            control_address="127.0.0.1:7443",
        )

    async def renew(self, call: RenewCall) -> RenewAnswer:
        self.calls.append(call)
        await trio.lowlevel.checkpoint()
        verified = verify_renewal(
            certificate=call.certificate,
            csr=call.csr,
            proof=call.proof,
            authorities=[self.authority.certificate],
            revoked=(),
            now=NOW,
        )
        issued = self.authority.issue_client(csr=call.csr, identity=verified.identity, now=NOW + 60)
        return RenewAnswer(certificate_chain=issued.chain, ca_certificates=self.authority.pem)


@pytest.fixture
def store(tmp_path: Path) -> CredentialStore:
    return CredentialStore(tmp_path / "state")


async def test_enrolment_stores_credentials_that_load_again(store: CredentialStore) -> None:
    controller = Controller()
    credentials = await enroll(controller.join, store, controller.enroll)
    assert store.load() == credentials
    keys = TrustedKeys.load(store.signing_keys, "acme")
    assert keys.usable(NOW) == controller.keys.keys.keys
    assert keys.root_public_key == controller.root.public_key().public_bytes_raw()
    assert (credentials.organization, credentials.node, credentials.control_address) == (
        "acme",
        "web-1",
        "127.0.0.1:7443",
    )
    (call,) = controller.calls
    assert isinstance(call, EnrollCall)
    assert call.token == encode_token(SECRET)
    assert call.agent_instance == credentials.agent_instance
    assert call.ca_certificates == controller.authority.pem


async def test_state_is_closed_to_others(store: CredentialStore) -> None:
    controller = Controller()
    await enroll(controller.join, store, controller.enroll)
    modes = {path.name: path.stat().st_mode & 0o7777 for path in store.state_dir.iterdir()}
    assert modes == {"credentials.json": 0o600, "signing-keys.json": 0o600}
    assert store.state_dir.stat().st_mode & 0o7777 == 0o700


async def test_the_key_never_leaves_the_node(store: CredentialStore) -> None:
    controller = Controller()
    credentials = await enroll(controller.join, store, controller.enroll)
    await renew(credentials, store, controller.renew)
    assert "PRIVATE" not in repr(controller.calls)
    assert "PRIVATE" not in repr(credentials)


async def test_a_node_enrols_twice_only_when_told_and_is_another_instance_then(store: CredentialStore) -> None:
    controller = Controller()
    first = await enroll(controller.join, store, controller.enroll)
    with pytest.raises(AlreadyEnrolled, match="acme:web-1"):
        await enroll(controller.join, store, controller.enroll)
    assert len(controller.calls) == 1
    second = await enroll(controller.join, store, controller.enroll, again=True)
    assert second.agent_instance != first.agent_instance
    assert store.load() == second


async def test_what_cannot_be_written_costs_no_token(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    controller = Controller()
    with pytest.raises(OSError, match="file"):
        await enroll(controller.join, CredentialStore(tmp_path / "file" / "state"), controller.enroll)
    with pytest.raises(OSError, match="file"):
        await enroll(
            controller.join,
            CredentialStore(tmp_path / "state"),
            controller.enroll,
            split=Split(account=None, launcher_dir=tmp_path / "file" / "launcher"),
        )
    assert controller.calls == []


async def test_after_a_lost_answer_the_same_join_string_serves_as_the_same_instance(
    store: CredentialStore,
) -> None:
    controller = Controller()

    async def lose(call: EnrollCall) -> EnrollAnswer:
        await controller.enroll(call)
        raise Unreachable("the answer was lost")

    with pytest.raises(Unreachable):
        await enroll(controller.join, store, lose)
    with pytest.raises(NotEnrolled, match="shovey-agent enroll"):
        store.load()
    credentials = await enroll(controller.join, store, controller.enroll)
    assert store.load() == credentials
    assert not (store.state_dir / "enrolling.json").exists()
    first, second = (call for call in controller.calls if isinstance(call, EnrollCall))
    assert first.agent_instance == second.agent_instance == credentials.agent_instance
    assert read_request(first.csr) == read_request(second.csr)


async def test_another_join_string_begins_anew(store: CredentialStore) -> None:
    controller = Controller()
    tried: list[EnrollCall] = []

    async def fail(call: EnrollCall) -> EnrollAnswer:
        tried.append(call)
        raise Unreachable("nobody there")

    for secret in (SECRET, bytes(32)):
        with pytest.raises(Unreachable):
            await enroll(replace(controller.join, secret=secret), store, fail)
    assert tried[0].agent_instance != tried[1].agent_instance
    assert read_request(tried[0].csr) != read_request(tried[1].csr)


async def test_a_cancelled_call_stores_no_credentials(store: CredentialStore) -> None:
    async def hang(_call: EnrollCall) -> EnrollAnswer:
        scope.cancel(reason="the test cancels during the call")
        await trio.sleep_forever()
        raise AssertionError

    with trio.CancelScope() as scope:
        await enroll(Controller().join, store, hang)
    assert scope.cancelled_caught
    with pytest.raises(NotEnrolled):
        store.load()


def _other_name(answer: EnrollAnswer, call: EnrollCall, authority: CertificateAuthority) -> EnrollAnswer:
    issued = authority.issue_client(csr=call.csr, identity=node_identity("acme", "web-2"), now=NOW)
    return replace(answer, certificate_chain=issued.chain)


def _other_key(answer: EnrollAnswer, _call: EnrollCall, authority: CertificateAuthority) -> EnrollAnswer:

    csr = make_request(make_private_key())
    issued = authority.issue_client(csr=csr, identity=node_identity("acme", "web-1"), now=NOW)
    return replace(answer, certificate_chain=issued.chain)


def _garbage(answer: EnrollAnswer, _call: EnrollCall, _authority: CertificateAuthority) -> EnrollAnswer:
    return replace(answer, certificate_chain=b"\xff\xfe")


def _foreign_ca(answer: EnrollAnswer, _call: EnrollCall, _authority: CertificateAuthority) -> EnrollAnswer:
    return replace(answer, ca_certificates=create_authority(organization="evil", key=make_private_key(), now=NOW).pem)


@pytest.mark.parametrize("spoil", [_other_name, _other_key, _garbage, _foreign_ca])
async def test_an_answer_for_somebody_else_is_refused_and_not_stored(
    store: CredentialStore, spoil: Callable[[EnrollAnswer, EnrollCall, CertificateAuthority], EnrollAnswer]
) -> None:
    controller = Controller()

    async def call(request: EnrollCall) -> EnrollAnswer:
        return spoil(await controller.enroll(request), request, controller.authority)

    with pytest.raises(NodeProtocolError):
        await enroll(controller.join, store, call)
    with pytest.raises(NotEnrolled):
        store.load()


async def test_renewal_changes_key_and_certificate_and_nothing_else(store: CredentialStore) -> None:
    controller = Controller()
    old = await enroll(controller.join, store, controller.enroll)
    new = await renew(old, store, controller.renew)
    assert store.load() == new
    assert new.private_key != old.private_key
    assert new.expires_at == old.expires_at + 60
    assert old.renew_at < old.expires_at
    assert replace(new, private_key=old.private_key, certificate_chain=old.certificate_chain) == old


async def test_a_renewal_that_fails_keeps_the_old_credentials(store: CredentialStore) -> None:
    controller = Controller()
    old = await enroll(controller.join, store, controller.enroll)

    async def other_node(call: RenewCall) -> RenewAnswer:
        issued = controller.authority.issue_client(csr=call.csr, identity=node_identity("acme", "web-2"), now=NOW)
        return RenewAnswer(certificate_chain=issued.chain, ca_certificates=controller.authority.pem)

    with pytest.raises(NodeProtocolError, match="web-2"):
        await renew(old, store, other_node)
    assert store.load() == old


async def test_state_open_to_others_is_refused(store: CredentialStore) -> None:
    controller = Controller()
    await enroll(controller.join, store, controller.enroll)
    for path in store.state_dir.iterdir():
        path.chmod(0o644)
        with pytest.raises(InsecureFile, match=rf"{path.name} has mode 0644.*chmod 0600"):
            store.load()
        path.chmod(0o600)
    for name in ("nonces", "voided"):
        (store.state_dir / name).touch(mode=0o640)
        with pytest.raises(InsecureFile, match=f"{name} has mode 0640"):
            store.load()
        (store.state_dir / name).chmod(0o600)
    (store.state_dir / "runs").mkdir(mode=0o750)
    with pytest.raises(InsecureFile, match=r"runs has mode 0750.*chmod 0700"):
        store.load()
    (store.state_dir / "runs").chmod(0o700)
    store.load()
    store.state_dir.chmod(0o711)
    with pytest.raises(InsecureFile, match="0711"):
        store.load()
    store.state_dir.chmod(0o700)
    store.signing_keys.chmod(0o644)
    with pytest.raises(InsecureFile, match=r"signing-keys\.json"):
        TrustedKeys.load(store.signing_keys, "acme")


@pytest.mark.parametrize("change", [{"format": 9}, {"node": "web-2"}, {"private_key": "x"}, {"extra": 1}, {"node": 5}])
async def test_damaged_credentials_are_named_and_not_quoted(store: CredentialStore, change: dict[str, Any]) -> None:
    controller = Controller()
    await enroll(controller.join, store, controller.enroll)
    path = store.state_dir / "credentials.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(FileUnusable) as caught:
        store.load()
    assert str(path) in caught.value.message
    assert "PRIVATE" not in caught.value.message


def _of_another_root(keys: PublishedKeys) -> PublishedKeys:
    return make_keys("acme", Ed25519PrivateKey.generate(), now=NOW).published()


def _unsigned(keys: PublishedKeys) -> PublishedKeys:
    return replace(keys, signed=b"", root_public_key=b"")


def _of_another_organization(keys: PublishedKeys) -> PublishedKeys:
    return make_keys("evil", Ed25519PrivateKey.generate(), now=NOW).published()


@pytest.mark.parametrize("spoil", [_of_another_root, _unsigned, _of_another_organization])
async def test_keys_that_the_join_strings_root_did_not_sign_are_refused_and_nothing_is_stored(
    store: CredentialStore, spoil: Callable[[PublishedKeys], PublishedKeys]
) -> None:
    controller = Controller()
    join = controller.join
    controller.keys = spoil(controller.keys)
    with pytest.raises(KeySetRefused):
        await enroll(join, store, controller.enroll)
    with pytest.raises(NotEnrolled):
        store.load()


async def test_a_join_string_without_a_root_key_takes_the_root_of_the_controllers_answer(
    store: CredentialStore,
) -> None:
    controller = Controller()
    controller.vouches_for_root = False
    await enroll(controller.join, store, controller.enroll)
    keys = TrustedKeys.load(store.signing_keys, "acme")
    assert keys.root_public_key == controller.root.public_key().public_bytes_raw()


async def test_enrolling_again_forgets_the_root_key_of_before(store: CredentialStore) -> None:
    first = Controller()
    await enroll(first.join, store, first.enroll)
    other = Controller()
    await enroll(other.join, store, other.enroll, again=True)
    keys = TrustedKeys.load(store.signing_keys, "acme")
    assert keys.root_public_key == other.root.public_key().public_bytes_raw()
