"""The legacy signing keys of a running controller: which key signs for which node, and what nodes have shown of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

import structlog
import trio

from shovey_trio.core.errors import NotFound, ShoveyError
from shovey_trio.core.model import LinkMode
from shovey_trio.core.shovey_wire import format_time, sign_payload
from shovey_trio.identity.legacy_keys import LegacyKeyFile, LegacyKeys, make_legacy_key
from shovey_trio.nursery.registry import NodeRegistry

_log = structlog.get_logger(__name__)
# What nodes have shown is written this much later, all at once: after a reset a whole fleet shows it within a minute.
# Lost in a crash, it is shown again: a node that is signed for with a key it does not hold says so.
_WRITE_AFTER: Final = 1.0


class LegacyKeyring:
    """Implements ``nursery.ports.LegacySigner``. ``serve`` must run for what nodes show to become durable."""

    def __init__(self, *, file: LegacyKeyFile, keys: LegacyKeys, registry: NodeRegistry) -> None:
        self._file = file
        self._keys = keys
        self._registry = registry
        self._shown: dict[str, str] = {}
        self._work = trio.Event()

    # -- signing

    def key_for(self, organization: str, node: str) -> str:
        """The id of the key that this node holds, as far as is known."""
        return self._keys.key_of(node, registered_at=self._registered(organization, node)).key_id

    def sign(self, key_id: str, fields: Mapping[str, str]) -> bytes:
        """An order's payload, signed with that key, or with the current one if that key is gone by now; 1 ms of CPU."""
        key = next((key for key in self._keys.keys if key.key_id == key_id), self._keys.current)
        return sign_payload(fields, key.private_key)

    def time(self, now: float) -> str:
        """A moment as orders write it: in this host's local time."""
        return format_time(now, utc_offset=time.localtime(now).tm_gmtoff)

    # -- what nodes show

    def fits(self, node: str, key_id: str) -> None:
        """Notes that a node has accepted an order signed with that key."""
        if len(self._keys.keys) > 1 and self._keys.held.get(node) != key_id:
            self._show(node, key_id)

    def does_not_fit(self, node: str, key_id: str) -> bool:
        """Notes that a node refused an order signed with that key; whether there is another one that it may hold."""
        other = self._keys.other_than(key_id)
        if other is None:
            return False
        self._show(node, other.key_id)
        _log.info("legacy_key.other_tried", node=node, refused=key_id, tried=other.key_id)
        return True

    async def serve(self) -> None:
        """Writes what nodes have shown, and drops keys that nobody holds any more; until cancelled."""
        while True:
            await self._work.wait()
            await trio.sleep(_WRITE_AFTER)
            self._work = trio.Event()
            shown, self._shown = self._shown, {}
            try:
                await self._change(shown)
            except (ShoveyError, OSError) as error:
                _log.warning("legacy_key.not_written", error=str(error), nodes=len(shown))

    # -- administration

    def public_key(self, organization: str) -> str:
        """PEM of the key that nodes are to be given.

        Raises:
            NotFound: not an organization of this controller.
        """
        self._check(organization)
        return self._keys.current.public_pem

    async def reset(self, organization: str) -> str:
        """Makes a new current key, durably, and returns its PEM; each node is moved to it when it shows it.

        Raises:
            NotFound: not an organization of this controller.
            OSError: it cannot be written; nothing has changed.
        """
        self._check(organization)
        key = await trio.to_thread.run_sync(make_legacy_key, time.time())
        self._keys = await trio.to_thread.run_sync(
            lambda: self._file.change(organization, lambda keys: keys.with_key(key))
        )
        _log.info("legacy_key.reset", key_id=key.key_id, keys=len(self._keys.keys))
        return key.public_pem

    async def reload(self) -> None:
        """Reads the file again: the command line may have changed it.

        Raises:
            ShoveyError: it cannot be read; what was read before stays in force.
        """
        self._keys = await trio.to_thread.run_sync(self._file.load, self._keys.organization)

    def _show(self, node: str, key_id: str) -> None:
        self._keys = self._keys.with_held({node: key_id})
        self._shown[node] = key_id
        self._work.set()

    async def _change(self, shown: Mapping[str, str]) -> None:
        organization = self._keys.organization
        nodes = self._registry.of(organization).values()
        registered = {node.name: node.enrolled_at for node in nodes if node.link is LinkMode.LEGACY}

        def write() -> LegacyKeys:
            return self._file.change(organization, lambda keys: keys.with_held(shown).pruned(registered))

        written = await trio.to_thread.run_sync(write)
        # What was shown while the file was being written is on its way to it.
        self._keys = written.with_held(self._shown)

    def _registered(self, organization: str, node: str) -> float:
        known = self._registry.get(organization, node)
        return 0.0 if known is None else known.enrolled_at

    def _check(self, organization: str) -> None:
        if organization != self._keys.organization:
            raise NotFound(f"there is no organization {organization}", organization=organization)
