"""Taking up changed files and rows without a restart: on HUP, once a day, and when ``file_watch`` notices a change."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog
import trio

from shovey_trio.application.audit import AuditLog
from shovey_trio.application.identities import Identities
from shovey_trio.application.nodes import Nodes
from shovey_trio.application.organization_keys import OrganizationKeys
from shovey_trio.chef.callers import StoredChefCallers
from shovey_trio.config.server import ServerSettings
from shovey_trio.controller.settings import CONTROL, ENROLL, load_keys, load_tls, server_tls
from shovey_trio.core.errors import ShoveyError
from shovey_trio.nursery.links import Links
from shovey_trio.nursery.ports import SendKeys
from shovey_trio.observe.threads import run_in_thread
from shovey_trio.rpc.bridge import Server
from shovey_trio.rpc.signer import ActiveKeySigner

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload:
    """Call it to read everything again.

    Each part is by itself: a certificate that is damaged must not keep a revoked key in force.

    Attributes:
        more: parts that a wing brings, by name.
        keys_changed: called when an organization has other keys, after those who are attached were told.
    """

    settings: ServerSettings
    server: Server
    identities: Identities
    keys: OrganizationKeys
    signer: ActiveKeySigner
    links: Links
    callers: StoredChefCallers
    nodes: Nodes
    more: Mapping[str, Callable[[], Awaitable[None]]]
    keys_changed: Callable[[], None]
    audit: AuditLog

    async def __call__(self) -> bool:
        """Reads it all; what is bad leaves the old of its part in force. Whether everything was good."""
        parts: dict[str, Callable[[], Awaitable[None]]] = {
            "signing keys": self._load_keys,
            "users and revocations": self.identities.load,
            "nodes": self.nodes.reload,
            "certificates": self._load_tls,
            "chef keys": self.callers.load,
            **self.more,
        }
        failed = [name for name, load in parts.items() if not await self._part(name, load)]
        if not failed:
            _log.info("controller.reloaded")
        return not failed

    async def keys_again(self, every: float) -> None:
        """Reads the signing keys again and again, until cancelled: a Vault does not say when they change.

        One that is away is reported each time, and the keys that are in memory stay in force.
        """
        while True:
            await trio.sleep(every)
            await self._part("signing keys", self._load_keys)

    async def _part(self, name: str, load: Callable[[], Awaitable[None]]) -> bool:
        try:
            await load()
        except (ShoveyError, OSError) as error:
            _log.error("controller.reload_failed", part=name, error=str(error))
            return False
        return True

    async def _load_tls(self) -> None:
        tls = await run_in_thread(load_tls, self.settings)
        self.identities.replace_authority(tls.authority, tls.ca_pem)
        self.server.reload_tls(CONTROL, server_tls(tls.control))
        self.server.reload_tls(ENROLL, server_tls(tls.enroll))

    async def _load_keys(self) -> None:
        keys = await run_in_thread(load_keys, self.settings)
        changed = self.keys.replace(keys)
        # On each stream ahead of the first order that only they verify.
        for link in self.links:
            if link.organization in changed:
                link.send_nowait(SendKeys(keys=self.keys.published(link.organization)))
        self.signer.replace(self.keys.active())
        for organization in changed:
            serial = self.keys.published(organization).keys.serial
            _log.info("keys.replaced", organization=organization, serial=serial)
            await self.audit.keys_changed(self.keys.published(organization))
        if changed:
            self.keys_changed()
