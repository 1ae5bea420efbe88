"""``membership``: what a large serf cluster costs the daemon – all members at once, and one change after another.

The daemon is real, the serf agent beside it is emulated by its own RPC protocol. None of the members is a registered
node: what a node's presence costs is the same in a small cluster.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from lab.fake_serf import FakeSerfCluster
from lab.serf_emulator import EmulatedSerf, open_emulated_serf
from shovey_trio.bench.daemon_meter import DaemonCost, DaemonMeter
from shovey_trio.bench.figures import Bar, Figure, figure
from shovey_trio.bench.stage import END_DEADLINE, Stage, make_fleet, start_daemon
from shovey_trio.core.serf.wire import MemberStatus
from shovey_trio.demo.fleet import ORGANIZATION
from shovey_trio.rpc.client.client import ShoveyClient

_MEMBERS: Final = 10_000
_CONTROLLER: Final = f"{ORGANIZATION}:controller"
# Members whose serf agents fail and come back, one event each.
_CHANGES: Final = 400
# Below what an agent keeps for a client that does not read.
_AT_ONCE: Final = 100
_POLL: Final = 0.02


async def measure(stage: Stage) -> Sequence[Figure]:
    """Gives a daemon a cluster of 1,000, then of 10,000 members, and has some of them fail and come back."""
    figures: list[Figure] = []
    largest = min(_MEMBERS, 10 * stage.options.agents)
    changes = min(_CHANGES, largest // 10 - 1)
    for members in (largest // 10, largest):
        async with _open_daemon(stage, members) as (cluster, client, meter):
            arrived = await _all_at_once(cluster, client, meter, members)
            changed = await _one_after_the_other(cluster, client, meter, changes)
        name = f"serf cluster of {members:,}"
        figures += [
            figure(f"{name}: all members at once, CPU each", [arrived.cpu / members * 1e6], unit="µs", simulated=True),
            figure(f"{name}: longest stall meanwhile", [arrived.stall], bar=Bar(at=0.1), simulated=True),
            figure(f"{name}: one change, CPU", [changed.cpu / (2 * changes) * 1e6], unit="µs", simulated=True),
            figure(f"{name}: memory, peak", [changed.peak / 2**20], unit="MiB", simulated=True),
        ]
    return figures


@asynccontextmanager
async def _open_daemon(stage: Stage, members: int) -> AsyncIterator[tuple[EmulatedSerf, ShoveyClient, DaemonMeter]]:
    """A daemon beside the serf agent of a cluster that it is alone in as yet."""
    directory = stage.fleet.directory / f"membership-{members}"
    await trio.Path(directory).mkdir()
    async with open_emulated_serf(_CONTROLLER, []) as cluster:
        address = f"127.0.0.1:{cluster.rpc_port}"
        fleet = make_fleet(directory, **{"serf.enabled": "true", "serf.address": address})
        try:
            await fleet.initialize()
            await start_daemon(fleet)
            assert fleet.controller.pid is not None
            async with fleet.open_client() as client:
                await _seen(client, 1)
                yield cluster, client, DaemonMeter(fleet.controller.pid, fleet.controller.log)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + END_DEADLINE):
                await fleet.end()


async def _all_at_once(cluster: EmulatedSerf, client: ShoveyClient, meter: DaemonMeter, members: int) -> DaemonCost:
    """The serf agent restarts and knows everybody: the daemon connects and is told all members in one answer."""
    with meter.measuring() as cost:
        cluster.members |= FakeSerfCluster(*(_name(number) for number in range(1, members))).members
        cluster.agent(_CONTROLLER).drop()
        await _seen(client, members)
    return cost


async def _one_after_the_other(
    cluster: EmulatedSerf, client: ShoveyClient, meter: DaemonMeter, changes: int
) -> DaemonCost:
    alive = len(cluster.members)
    with meter.measuring() as cost:
        for status, step in ((MemberStatus.FAILED, -1), (MemberStatus.ALIVE, 1)):
            for number in range(1, changes + 1):
                cluster.set_status(_name(number), status)
                alive += step
                if number % _AT_ONCE == 0 or number == changes:
                    await _seen(client, alive)
    return cost


def _name(number: int) -> str:
    return f"{ORGANIZATION}:node-{number:05}"


async def _seen(client: ShoveyClient, alive: int) -> None:
    """Returns when the daemon counts so many members as alive."""
    while True:
        if (await client.get_server_info()).serf.members_alive == alive:
            return
        await trio.sleep(_POLL)
