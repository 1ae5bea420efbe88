"""The controller's place on the gossip ring: its serf agent, the doorbell, and what it tells the ring."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from shovey_trio.application.announcer import Announcer
from shovey_trio.application.organization_keys import OrganizationKeys
from shovey_trio.config.server import ServerSettings
from shovey_trio.controller.settings import serf_link_of
from shovey_trio.nursery.ports import Clock, Doorbell
from shovey_trio.serf.doorbell import NoDoorbell, SerfDoorbell
from shovey_trio.serf.link import SerfLink
from shovey_trio.store.contract import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """Made by ``open_ring``.

    Attributes:
        link: to the serf agent; None where serf is not used.
        doorbell: wakes nodes; where serf is not used it says so.
        announcer: tells the ring of jobs and nodes, where it is to be told.
    """

    link: SerfLink | None
    doorbell: Doorbell
    announcer: Announcer | None


@asynccontextmanager
async def open_ring(
    settings: ServerSettings,
    *,
    store: Store,
    keys: OrganizationKeys,
    clock: Clock,
    epoch: int,
    events: Sequence[str] = (),
) -> AsyncIterator[Ring]:
    """Keeps the link to the serf agent for the block, whenever that agent is there.

    Args:
        settings: of the controller.
        store: its commits are told to the ring, if that is wished.
        keys: that sign doorbells.
        clock: wall-clock time.
        epoch: of this start.
        events: what else to hear of the ring, in serf's words, for somebody who reads it.

    Raises:
        ShoveyError: the key file of the serf agent cannot be used.
    """
    link = serf_link_of(settings, events)
    if link is None:
        yield Ring(link=None, doorbell=NoDoorbell(), announcer=None)
        return
    limit = settings.serf.query_size_limit
    doorbell = SerfDoorbell(link=link, signing_key=keys.for_doorbells, epoch=epoch, clock=clock, limit=limit)
    announcer: Announcer | None = None
    if settings.serf.event_announce:
        announcer = Announcer(organization=settings.server.organization, store=store, announce=link.announce)
        store.on_commit(announcer.committed)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        if announcer is not None:
            nursery.start_soon(announcer.serve)
        yield Ring(link=link, doorbell=doorbell, announcer=announcer)
        nursery.cancel_scope.cancel(reason="the controller stops")
