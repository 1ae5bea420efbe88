"""The signing keys for old nodes, as a running controller has them, and what nodes have shown of the one they hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

import structlog
import trio

from shovey_trio.core.errors import NotFound, ShoveyError
from shovey_trio.identity.key_files import KeyPlace
from shovey_trio.nursery.registry import NodeRegistry
from shovey_trio.observe.threads import run_in_thread
from shovey_trio.shovey.keys import SchobKeys, make_schob_key
from shovey_trio.shovey.kind import KIND
from shovey_trio.shovey.protocol.wire import format_time, sign_payload

_log = structlog.get_logger(__name__)
# What nodes have shown is written this much later, all at once: after a reset a whole fleet shows it within a minute.
# Lost in a crash, it is shown again: a node that is signed for with a key it does not hold says so.
_WRITE_AFTER: Final = 1.0


class SchobKeyring:
    """Signs with the key that a node holds. ``serve`` must run for what nodes show to become durable.

    Args:
        places: where the keys of every organization are; blocks.
        registry: of the nodes.
    """

    def __init__(self, places: Callable[[], Mapping[str, KeyPlace[SchobKeys]]], *, registry: NodeRegistry) -> None:
        self._find_places = places
        self._registry = registry
        self._places: dict[str, KeyPlace[SchobKeys]] = {}
        self._rings: dict[str, SchobKeys] = {}
        # Key ids by organization and node.
        self._shown: dict[str, dict[str, str]] = {}
        self._work = trio.Event()

    async def load(self) -> None:
        """Reads the keys, again too: the command line may have changed them, or made an organization.

        Keys of an organization that was removed are kept until the next start, for the runs that it leaves behind.

        Raises:
            ShoveyError: some cannot be read; what was read before stays in force.
            OSError: some cannot be made.
        """

        def read() -> tuple[Mapping[str, KeyPlace[SchobKeys]], Mapping[str, SchobKeys]]:
            places = self._find_places()
            return places, {name: place.load(name) for name, place in places.items()}

        places, rings = await run_in_thread(read)
        self._places |= places
        self._rings |= rings

    # -- signing

    def key_for(self, organization: str, node: str) -> str:
        """The id of the key that this node holds, as far as is known.

        Raises:
            NotFound: there are no keys of this organization.
        """
        return self._keys(organization).key_of(node, registered_at=self._registered(organization, node)).key_id

    def sign(self, organization: str, key_id: str, fields: Mapping[str, str]) -> bytes:
        """An order's payload, signed with that key, or with the current one if that key is gone by now; 1 ms of CPU."""
        keys = self._keys(organization)
        key = next((key for key in keys.keys if key.key_id == key_id), keys.current)
        return sign_payload(fields, key.private_key)

    def time(self, now: float) -> str:
        """A moment as orders write it: in this host's local time."""
        return format_time(now, utc_offset=time.localtime(now).tm_gmtoff)

    # -- what nodes show

    def fits(self, organization: str, node: str, key_id: str) -> None:
        """Notes that a node has accepted an order signed with that key."""
        keys = self._keys(organization)
        if len(keys.keys) > 1 and keys.held.get(node) != key_id:
            self._show(organization, node, key_id)

    def does_not_fit(self, organization: str, node: str, key_id: str) -> bool:
        """Notes that a node refused an order signed with that key; whether there is another one that it may hold."""
        other = self._keys(organization).other_than(key_id)
        if other is None:
            return False
        self._show(organization, node, other.key_id)
        _log.info("legacy_key.other_tried", node=node, refused=key_id, tried=other.key_id)
        return True

    async def serve(self) -> None:
        """Writes what nodes have shown, and drops keys that nobody holds any more; until cancelled."""
        while True:
            await self._work.wait()
            await trio.sleep(_WRITE_AFTER)
            self._work = trio.Event()
            shown, self._shown = self._shown, {}
            for organization, held in shown.items():
                try:
                    await self._change(organization, held)
                except (ShoveyError, OSError) as error:
                    _log.warning("legacy_key.not_written", error=str(error), nodes=len(held))

    # -- administration

    def public_key(self, organization: str) -> str:
        """PEM of the key that nodes are to be given.

        Raises:
            NotFound: not an organization of this controller.
        """
        return self._keys(organization).current.public_pem

    async def reset(self, organization: str, request_id: str) -> bool:
        """Makes a new current key, durably; each node is moved to it when it shows it.

        Returns False, and changes nothing, when this request has made a key before.

        Raises:
            NotFound: not an organization of this controller.
            OSError: it cannot be written; nothing has changed.
        """
        if request_id in self._keys(organization).resets:
            return False
        place = self._places[organization]
        key = await run_in_thread(make_schob_key, time.time())

        def change(keys: SchobKeys) -> SchobKeys:
            # Read again: two copies of the request may have come at once.
            return keys if request_id in keys.resets else keys.with_key(key, request_id=request_id)

        written = await run_in_thread(lambda: place.change(organization, change))
        self._keep(written)
        if written.current.key_id != key.key_id:
            return False
        _log.info("legacy_key.reset", organization=organization, key_id=key.key_id, keys=len(written.keys))
        return True

    def _keys(self, organization: str) -> SchobKeys:
        keys = self._rings.get(organization)
        if keys is None:
            raise NotFound(f"there is no organization {organization}", organization=organization)
        return keys

    def _keep(self, keys: SchobKeys) -> None:
        self._rings[keys.organization] = keys

    def _show(self, organization: str, node: str, key_id: str) -> None:
        self._keep(self._keys(organization).with_held({node: key_id}))
        self._shown.setdefault(organization, {})[node] = key_id
        self._work.set()

    async def _change(self, organization: str, shown: Mapping[str, str]) -> None:
        nodes = self._registry.of(organization).values()
        registered = {node.name: node.enrolled_at for node in nodes if node.link == KIND}
        place = self._places[organization]

        def write() -> SchobKeys:
            return place.change(organization, lambda keys: keys.with_held(shown).pruned(registered))

        written = await run_in_thread(write)
        # What was shown while the file was being written is on its way to it.
        self._keep(written.with_held(self._shown.get(organization, {})))

    def _registered(self, organization: str, node: str) -> float:
        known = self._registry.get(organization, node)
        return 0.0 if known is None else known.enrolled_at
