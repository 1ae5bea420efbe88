"""``idle``: what attached agents cost when nothing happens – keepalive, and memory."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from shovey_trio.bench.figures import Bar, Figure, figure
from shovey_trio.bench.stage import Stage

_SETTLE = 3.0


async def measure(stage: Stage) -> Sequence[Figure]:
    """Watches the daemon with all agents attached for ``seconds``."""
    options = stage.options
    await stage.attach(options.agents)
    await trio.sleep(_SETTLE)
    with stage.daemon.measuring() as cost:
        await trio.sleep(options.seconds)
    memory = (stage.daemon.resident() - stage.empty_memory) / options.agents / 1024
    name = f"{options.agents:,} agents idle"
    return [
        figure(f"{name}: daemon CPU", [cost.cpu / options.seconds * 100], unit="% core", bar=Bar(at=5.0)),
        figure(f"{name}: daemon memory each", [memory], unit="KiB", bar=Bar(at=96, stretch=80)),
        figure(f"{name}: longest stall", [cost.stall]),
    ]
