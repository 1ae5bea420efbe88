"""Run as a process of its own: the probe service, until SIGTERM, with much grace; a second one takes most of it back.

Prints its port on one line; what else it writes, on either stream, is a defect.
"""

import logging
import signal
from functools import partial

import structlog
import trio

from lab.rpc_probe import Probe
from shovey_trio.rpc.bridge import Listener, open_server


async def _main() -> None:
    probe = Probe()
    listener = Listener(name="a", address="127.0.0.1:0", serves=probe.serves())
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with open_server([listener]) as server:
            print(server.port("a"), flush=True)
            await anext(signals)
            # Nobody outside can see it begin, and one that has not is refused.
            await probe.until(lambda probe: probe.started["unary"] == 1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(server.stop, grace=60.0))
                await trio.lowlevel.checkpoint()
                probe.release.set()  # the unary call in flight ends inside the grace
                await anext(signals)
                await server.stop(grace=0.2)


structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
trio.run(_main)
