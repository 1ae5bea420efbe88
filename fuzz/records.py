"""What files and servers that we rely on say: audit exports, key files, Vault; and HTTP heads that are read here."""

from __future__ import annotations

import hashlib
import json
import os
from base64 import b64encode
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final
from zipfile import ZipFile

import h11
import httpx2

from fuzz.target import Target
from fuzz.trust import signing_key, trusted_keys
from shovey_agent.desk.launcher_trust import load_trust
from shovey_agent.desk.trusted_keys import TrustedKeys
from shovey_trio.application.audit_verify import export_line, verify_export
from shovey_trio.controller.backup import BackupUnusable, open_backup
from shovey_trio.core.audit.head import decode_head, encode_head, sign_head
from shovey_trio.core.audit.records import (
    CHAIN_DOMAIN,
    GENESIS,
    AuditAction,
    AuditBroken,
    AuditEntry,
    AuditOutcome,
    chain_record,
)
from shovey_trio.core.jobs.model import Role, User
from shovey_trio.core.trust.key_sets import encode_key_set, sign_key_set
from shovey_trio.core.trust.orders import RefusalReason
from shovey_trio.core.trust.rights import RevokedCertificate, Rights, decode_rights, encode_rights
from shovey_trio.http.plain_head import read_plain_head
from shovey_trio.identity.files import FileUnusable
from shovey_trio.identity.key_places import VaultCredentials, VaultOptions
from shovey_trio.identity.vault import Vault, VaultRefused, VaultUnavailable

# --- HTTP heads -----------------------------------------------------------------------------------------------


def _plain_head(data: bytes) -> None:
    """A head that is read without h11 means what h11 makes of it: two readings of one head are a way to smuggle."""
    head = data.partition(b"\r\n\r\n")[0]
    plain = read_plain_head(head, headers_limit=100)
    if plain is None:
        return
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(head + b"\r\n\r\n")
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    assert (plain.method, plain.target) == (request.method.decode("ascii"), request.target.decode("ascii"))
    headers = [(bytes(name), bytes(value)) for name, value in request.headers]
    assert list(plain.headers.items()) == headers
    # A body of so many bytes, and the connection goes on after it.
    connection.receive_data(b"x" * min(plain.length, 1000) + b"GET")
    body = connection.next_event()
    if plain.length == 0:
        assert isinstance(body, h11.EndOfMessage)
    else:
        assert isinstance(body, h11.Data)
        assert len(body.data) == min(plain.length, 1000 + 3)


def _plain_head_seeds() -> Iterator[bytes]:
    yield b"GET /shovey/jobs HTTP/1.1\r\nHost: h:1\r\nAccept: application/json"
    yield b"PUT /shovey/jobs/a/b?x=%20 HTTP/1.1\r\nHost: h\r\nContent-Length: 17\r\nX-Ops-Userid:  me too \t"
    yield b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\nTransfer-Encoding: chunked"
    yield b"GET / HTTP/1.1\r\nHost: h\r\n folded: x"
    yield b"GET / HTTP/1.0\r\nHost: h\r\nConnection: keep-alive"


# --- the audit log --------------------------------------------------------------------------------------------


def _audit_export(data: bytes) -> None:
    """Lines as they come, and a first line whose hash holds, whatever it says."""
    text = data.decode("utf-8", "replace")
    for lines in (text.splitlines(), _rehashed(text)):
        try:
            verified = verify_export(lines, expected=())
        except AuditBroken:
            continue
        assert verified.head.seq == verified.start.seq + verified.records


def _rehashed(text: str) -> list[str]:
    try:
        fields = json.loads(text.partition("\n")[0])
        body = json.dumps(
            {name: value for name, value in fields.items() if name not in ("hash", "previous")},
            sort_keys=True,
            separators=(",", ":"),
        )
    except (ValueError, AttributeError, RecursionError):
        return []
    digest = hashlib.sha256(CHAIN_DOMAIN + bytes(32) + body.encode()).hexdigest()
    return [json.dumps({**fields, "previous": bytes(32).hex(), "hash": digest})]


def _audit_seeds() -> Iterator[bytes]:
    entry = AuditEntry(
        at=1.8e9,
        organization="default",
        action=AuditAction.JOB_STARTED,
        outcome=AuditOutcome.ALLOWED,
        principal="user/ada",
        subject="job/1",
        detail={"nodes": 3},
    )
    first = chain_record(GENESIS, entry)
    second = chain_record(first.head, entry)
    yield f"{export_line(first, GENESIS.hash)}\n{export_line(second, first.hash)}\n".encode()


def _audit_head(data: bytes) -> None:
    key = signing_key().private_key.public_key()
    signed = decode_head(data.decode("utf-8", "replace"), key)
    assert decode_head(encode_head(signed), key) == signed


def _audit_head_seeds() -> Iterator[bytes]:
    yield encode_head(sign_head(chain_record(GENESIS, _ENTRY).head, 1.8e9, signing_key().private_key)).encode()


def _rights(data: bytes) -> None:
    key = signing_key().private_key
    rights = decode_rights(data, key.public_key())
    assert decode_rights(encode_rights(rights, key), key.public_key()) == rights


def _rights_seeds() -> Iterator[bytes]:
    user = User(name="ada", organization="default", role=Role.ADMIN, created_at=1.8e9)
    void = RevokedCertificate(serial="0a", organization="default", subject="user/bob", expires_at=1.8e9)
    yield encode_rights(Rights(revoked=(void,), users=(user,)), signing_key().private_key)


def _backup(data: bytes) -> None:
    with open_backup(_written("backup", data)) as (backup, archive):
        assert len(archive.namelist()) == len(backup.files) + 2


def _backup_seeds() -> Iterator[bytes]:
    packed = BytesIO()
    with ZipFile(packed, "w") as archive:
        archive.writestr("store.sqlite3", b"rows")
        archive.writestr("data/ca/ca.key", b"key")
        said = {"format": 1, "organization": "default", "made_at": 1.8e9, "version": "1", "files": ["ca/ca.key"]}
        archive.writestr("shovey-trio-backup.json", json.dumps(said))
    yield packed.getvalue()


_ENTRY: Final = AuditEntry(
    at=1.8e9, organization="default", action=AuditAction.CONTROLLER_STARTED, outcome=AuditOutcome.ALLOWED
)

# --- files of keys --------------------------------------------------------------------------------------------


@cache
def _directory() -> Path:
    shm = Path("/dev/shm")  # noqa: S108 - a directory of our own in it
    return Path(mkdtemp(prefix="fuzz-keys-", dir=shm if os.access(shm, os.W_OK) else None))


def _written(name: str, data: bytes) -> Path:
    file = _directory() / name
    file.write_bytes(data)
    file.chmod(0o600)
    return file


def _keys_file(data: bytes) -> None:
    keys = TrustedKeys.load(_written("signing-keys.json", data), "default")
    assert keys.organization == "default"
    for key in keys.usable(1.8e9):
        assert not isinstance(keys.find(key.key_id, 1.8e9), RefusalReason)


def _launcher_directory(data: bytes) -> None:
    """The launcher's two files, with a NUL between them."""
    identity, _, keys = data.partition(b"\0")
    _written("signing-keys.json", keys)
    trust = load_trust(_written("identity.json", identity).parent)
    assert trust.keys.root_public_key


def _keys_seeds() -> Iterator[bytes]:
    body = encode_key_set(trusted_keys())
    root = signing_key()
    signed = b64encode(sign_key_set(body, root.private_key)).decode()
    fields = {"format": 2, "organization": "default", "root_public_key": root.public_bytes.hex(), "signed": signed}
    yield json.dumps(fields).encode()
    yield json.dumps({"format": 2, "organization": "default", "plain": b64encode(body).decode()}).encode()
    key = {"public_key": b64encode(root.public_bytes).decode(), "active": True, "created_at": 1.5}
    yield json.dumps({"format": 1, "organization": "default", "serial": 1, "keys": [key]}).encode()


def _launcher_seeds() -> Iterator[bytes]:
    identity = {"format": 1, "organization": "default", "node": "web-1", "agent_instance": "instance"}
    yield json.dumps(identity).encode() + b"\0" + next(_keys_seeds())


# --- Vault ----------------------------------------------------------------------------------------------------


def _vault(data: bytes) -> None:
    """A Vault that answers anything: a line to each question, the first byte is the status."""
    status = (200, 403, 404, 503, 204)[data[0] % 5] if data else 200
    lines = iter(data[1:].split(b"\n"))

    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, content=next(lines, b"{}"))

    vault = _client()
    vault._token = None
    vault._http = httpx2.Client(transport=httpx2.MockTransport(answer), base_url="http://vault")
    for _ in range(2):
        secret = vault.read("shovey")
        assert isinstance(secret.version, int)
        assert isinstance(secret.data, dict)


@cache
def _client() -> Vault:
    """Made once: reading the system's certificates takes longer than all else here."""
    return Vault(VaultOptions(address="http://vault"), _Token(), now=lambda: 1000.0)


class _Token(VaultCredentials):
    """A token that stands in no file."""

    def credentials(self) -> dict[str, str]:
        return {"token": "t"}


def _vault_seeds() -> Iterator[bytes]:
    lookup: Any = {"data": {"ttl": 100, "renewable": True}}
    secret: Any = {"data": {"data": {"key": "value"}, "metadata": {"version": 3}}}
    yield b"\0" + b"\n".join(json.dumps(answer).encode() for answer in (lookup, secret, secret))
    lookup["data"]["ttl"] = 0
    yield b"\0" + b"\n".join(json.dumps(answer).encode() for answer in (lookup, secret))
    yield b"\1"


TARGETS: Final = (
    Target(name="plain-head", decode=_plain_head, seeds=_plain_head_seeds, max_len=2048),
    Target(name="audit-export", decode=_audit_export, seeds=_audit_seeds, max_len=2048),
    Target(name="audit-head", decode=_audit_head, seeds=_audit_head_seeds, refusals=(AuditBroken,), max_len=512),
    Target(name="backup", decode=_backup, seeds=_backup_seeds, refusals=(BackupUnusable,), max_len=1024),
    Target(name="kept-rights", decode=_rights, seeds=_rights_seeds, refusals=(AuditBroken,), max_len=1024),
    Target(name="signing-keys-file", decode=_keys_file, seeds=_keys_seeds, refusals=(FileUnusable,), max_len=1024),
    Target(
        name="launcher-files", decode=_launcher_directory, seeds=_launcher_seeds, refusals=(FileUnusable,), max_len=1024
    ),
    Target(
        name="vault",
        decode=_vault,
        seeds=_vault_seeds,
        refusals=(VaultUnavailable, VaultRefused),
        max_len=1024,
    ),
)
