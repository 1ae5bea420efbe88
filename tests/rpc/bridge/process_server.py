"""Run as a process of its own: the probe service, until SIGTERM, with one second of grace.

Prints its port on one line; what else it writes, on either stream, is a defect.
"""

import logging
import signal
import sys

import structlog
import trio

from shovey_trio.rpc.bridge import Backend, Listener, open_server
from shovey_trio.testing.rpc_probe import Probe


async def _main(backend: Backend) -> None:
    probe = Probe()
    listener = Listener(name="a", address="127.0.0.1:0", routes=probe.routes())
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with open_server([listener], backend=backend) as server:
            print(server.port("a"), flush=True)
            async for _ in signals:
                break
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_release_later, probe)
                await server.stop(grace=1.0)


async def _release_later(probe: Probe) -> None:
    await trio.sleep(0.1)  # the unary call in flight ends inside the grace
    probe.release.set()


structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
trio.run(_main, Backend(sys.argv[1]))
