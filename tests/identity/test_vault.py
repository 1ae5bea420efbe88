"""Keys in Vault, against a real OpenBao: read, written once, the login kept alive, and every way it says no."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
import trustme

from lab.limits import within
from lab.vault_server import VaultServer, open_vault
from shovey_trio.core.errors import ConfigurationInvalid, Exit, ShoveyError
from shovey_trio.identity.files import FileUnusable, write_secret
from shovey_trio.identity.key_places import VaultCredentials, VaultOptions
from shovey_trio.identity.key_sources import (
    EnvironmentDocument,
    KeyDocument,
    VaultDocument,
)
from shovey_trio.identity.signing_keys import SigningKeyFile
from shovey_trio.identity.vault import Vault, VaultRefused, VaultUnavailable
from shovey_trio.shovey.keys import SchobKeyFile, SchobKeys, make_schob_key, schob_keys_document

PATH = "shovey-trio/default/signing"
T = TypeVar("T")


@dataclass
class Hands:
    """A monotonic clock that a test moves."""

    time: float = 1_000.0

    def now(self) -> float:
        return self.time


@dataclass
class Opened:
    """A client of a real server, and the files that it knows us by."""

    server: VaultServer
    directory: Path
    hands: Hands = field(default_factory=Hands)
    open: list[Vault] = field(default_factory=list)

    @property
    def options(self) -> VaultOptions:
        return VaultOptions(address=self.server.address, ca_file=str(self.server.ca_file))

    async def by_role(self, options: VaultOptions | None = None) -> Vault:
        role, secret = await self.server.role_credentials()
        file = self.directory / "secret-id"
        write_secret(file, secret.encode())
        return self.client(VaultCredentials(role_id=role, secret_id_file=file), options)

    async def by_token(self, *, ttl: int) -> Vault:
        file = self.directory / "token"
        write_secret(file, (await self.server.make_token(ttl=ttl)).encode() + b"\n")
        return self.client(VaultCredentials(token_file=file))

    def client(self, credentials: VaultCredentials, options: VaultOptions | None = None) -> Vault:
        self.open.append(Vault(options or self.options, credentials, now=self.hands.now))
        return self.open[-1]

    async def looked_up(self, vault: Vault) -> dict[str, Any]:
        assert vault._token is not None
        found = await self.server.ask("POST", "auth/token/lookup", {"token": vault._token.text})
        return dict(found["data"])


@pytest.fixture
async def vault(tmp_path: Path) -> AsyncIterator[Opened]:
    async with open_vault(tmp_path) as server:
        opened = Opened(server=server, directory=tmp_path)
        yield opened
        for client in opened.open:
            client.close()


async def blocking(work: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(work)


@within(60)
async def test_document_is_written_once_for_a_version_and_read_back(vault: Opened) -> None:
    client = await vault.by_role()
    place = VaultDocument(client, PATH)
    with pytest.raises(VaultRefused, match="there is no"):
        await blocking(place.read)
    assert await blocking(lambda: place.put(b'{"one": 1}')) == 1
    assert await blocking(lambda: place.put(b'{"two": 2}')) == 2
    assert await blocking(place.read) == b'{"two": 2}'
    with pytest.raises(VaultRefused, match="by somebody else"):
        await blocking(lambda: client.write(PATH, {"document": "{}"}, after_version=1))
    assert await blocking(lambda: place.replace(lambda before: before)) == b'{"two": 2}'
    assert (await blocking(lambda: client.read(PATH))).version == 2
    await blocking(lambda: client.write(PATH, {"other": "field"}, after_version=2))
    with pytest.raises(VaultRefused, match="no field 'document'"):
        await blocking(place.read)


@within(60)
async def test_token_is_renewed_when_two_thirds_of_its_life_are_over(vault: Opened) -> None:
    client = await vault.by_token(ttl=600)
    await blocking(lambda: VaultDocument(client, PATH).put(b"{}"))
    vault.hands.time += 300
    await blocking(lambda: client.read(PATH))
    assert "last_renewal_time" not in await vault.looked_up(client)
    vault.hands.time += 101
    await blocking(lambda: client.read(PATH))
    assert "last_renewal_time" in await vault.looked_up(client)


@within(60)
async def test_role_logs_in_again_when_its_token_is_gone_or_lives_no_longer(vault: Opened) -> None:
    client = await vault.by_role()
    await blocking(lambda: VaultDocument(client, PATH).put(b"{}"))
    first = (await vault.looked_up(client))["accessor"]
    assert client._token is not None
    await vault.server.ask("POST", "auth/token/revoke", {"token": client._token.text})
    await blocking(lambda: client.read(PATH))
    second = (await vault.looked_up(client))["accessor"]
    assert second != first
    # At its maximum a renewal gives nothing more.
    await vault.server.set_role(ttl=3600, max_ttl=3600)
    fresh = await vault.by_role()
    await blocking(lambda: fresh.read(PATH))
    before = (await vault.looked_up(fresh))["accessor"]
    vault.hands.time += 2_401
    fresh._token = replace(fresh._token, ends_at=1e9) if fresh._token else None
    await blocking(lambda: fresh.read(PATH))
    assert (await vault.looked_up(fresh))["accessor"] != before


@within(60)
async def test_refusals_say_why_and_hold_no_secret(vault: Opened) -> None:
    client = await vault.by_role()
    secret = (vault.directory / "secret-id").read_text()
    with pytest.raises(VaultRefused, match="no permission for elsewhere"):
        await blocking(lambda: client.read("elsewhere"))
    write_secret(vault.directory / "secret-id", b"not-the-secret-id")
    role = VaultCredentials(role_id="nobody", secret_id_file=vault.directory / "secret-id")
    with pytest.raises(VaultRefused, match="the role or its secret id is not valid") as by_role:
        await blocking(lambda: vault.client(role).read(PATH))
    write_secret(vault.directory / "token", b"s.not-a-token")
    with pytest.raises(VaultRefused, match="the token is not valid") as by_token:
        await blocking(lambda: vault.client(VaultCredentials(token_file=vault.directory / "token")).read(PATH))
    said = f"{by_role.value!r} {by_token.value!r} {client!r} {client._token!r}"
    assert client._token is not None
    assert not [word for word in (secret, client._token.text, "not-the-secret-id", "s.not-a-token") if word in said]


@within(60)
async def test_vault_that_is_sealed_gone_or_another_is_unavailable(vault: Opened) -> None:
    client = await vault.by_role()
    await blocking(lambda: VaultDocument(client, PATH).put(b"{}"))
    other = trustme.CA()
    other.cert_pem.write_to_path(vault.directory / "other.pem")
    stranger = await vault.by_role(replace(vault.options, ca_file=str(vault.directory / "other.pem")))
    with pytest.raises(VaultUnavailable, match=r"does not verify; see vault\.ca_file"):
        await blocking(lambda: stranger.read(PATH))
    await vault.server.seal()
    with pytest.raises(VaultUnavailable, match="is sealed"):
        await blocking(lambda: client.read(PATH))
    await vault.server.unseal()
    assert (await blocking(lambda: client.read(PATH))).version == 1
    await vault.server.process.stop()
    with pytest.raises(VaultUnavailable, match="cannot be reached") as caught:
        await blocking(lambda: client.read(PATH))
    assert caught.value.exit is Exit.UNREACHABLE


@within(60)
async def test_legacy_keys_in_vault_change_there(vault: Opened) -> None:
    keys = SchobKeys(organization="default", keys=(make_schob_key(1.0),))
    place = VaultDocument(await vault.by_role(), "shovey-trio/default/legacy")
    await blocking(lambda: place.put(schob_keys_document(keys)))
    document = KeyDocument(SchobKeyFile, place, place.path)
    held = {"web-1": keys.current.key_id}
    await blocking(lambda: document.change("default", lambda before: before.with_held(held)))
    loaded = await blocking(lambda: document.load("default"))
    assert (loaded.current.key_id, loaded.held) == (keys.current.key_id, held)
    with pytest.raises(FileUnusable, match="another organization"):
        await blocking(lambda: document.load("other"))


# -- without a server


class Fixed:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self) -> bytes:
        return self._data

    def replace(self, change: Callable[[bytes], bytes]) -> bytes:
        return change(self._data)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"format": 2}', b'{"format": 9}'])
def test_what_is_no_document_is_refused_without_quoting_it(data: bytes) -> None:
    with pytest.raises(FileUnusable, match=r"^here: no document of signing keys \(\w+\)$"):
        KeyDocument(SigningKeyFile, Fixed(data), "here").load("default")
    with pytest.raises(FileUnusable, match=r"^here: no document of legacy keys \(\w+\)$"):
        KeyDocument(SchobKeyFile, Fixed(data), "here").load("default")


def test_environment_is_read_once_and_not_left_to_children(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("SHOVEY_TEST_DOCUMENT", json.dumps({"a": 1}))
    place = EnvironmentDocument("SHOVEY_TEST_DOCUMENT")
    assert place.read() == place.read() == b'{"a": 1}'
    assert "SHOVEY_TEST_DOCUMENT" not in os.environ
    monkeypatch.setenv("SHOVEY_TEST_BASE64", "eyJhIjogMX0=")
    assert EnvironmentDocument("SHOVEY_TEST_BASE64").read() == b'{"a": 1}'


@pytest.mark.parametrize("value", ["", "not base64!"])
def test_environment_without_a_document_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    name = f"SHOVEY_TEST_BAD_{len(value)}"
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationInvalid) as caught:
        EnvironmentDocument(name).read()
    assert isinstance(caught.value, ShoveyError)
    assert not value or value not in caught.value.message
