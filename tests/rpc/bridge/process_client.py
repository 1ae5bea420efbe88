"""Run as a process of its own: opens streams of every shape and keeps them, for the test to kill it.

Usage: process_client.py TARGET COUNT. It says nothing; the server sees the streams.
"""

import sys

import trio

from lab.rpc_probe import ECHO, UNARY, UPLOAD, WATCH, text
from shovey_trio.rpc.bridge import Channel, open_channel


async def _hold(channel: Channel) -> None:
    async with (
        channel.stream(ECHO) as echo,
        channel.stream(UPLOAD) as upload,
        channel.stream(WATCH, text("idle")) as watch,
    ):
        await echo.send(text("one"))
        await echo.receive()
        await upload.send(text("one"))
        await watch.receive()
        await channel.unary(UNARY, text("sleep"))


async def _main(target: str, count: int) -> None:
    async with open_channel(target, None) as channel, trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(_hold, channel)


trio.run(_main, sys.argv[1], int(sys.argv[2]))
