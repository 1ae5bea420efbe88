"""What the gRPC bridge costs: CPU microseconds per operation, as a ratio to plain grpc.aio on asyncio in the same run.

``python bench/bridge.py [--rounds N] [--seconds S] [--streams N …] [--json FILE]``. A server and a load process each;
the CPU of the whole process under test (C core threads included) over the operations it did, rounds interleaved,
medians. Absolute figures carry the machine's noise; the ratios are what counts. Compared are the servers (the
bridge's, under a grpc.aio client) and the client (against a grpc.aio server). ``--streams`` opens that many
streams on a server, a hundred to a connection, and leaves them idle: CPU to open one, and memory of one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the laboratory is not in the wheel

SCENARIOS = ("unary", "watch", "upload", "echo")
SERVERS = ("aio", "bridge")
CLIENTS = ("aio", "bridge")
TICK = os.sysconf("SC_CLK_TCK")
UNARY_IN_FLIGHT = 64
STREAMS = 4
STREAMS_ON_A_CONNECTION = 100


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process and its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


@contextmanager
def server(engine: str) -> Iterator[tuple[int, str]]:
    """Run a server of ``engine``; yields its process id and address."""
    process = subprocess.Popen([sys.executable, __file__, "serve", engine], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.pid, f"127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait()


def load(engine: str, address: str, scenario: str, seconds: float) -> tuple[int, float]:
    """Run a client of ``engine``; return its operations and its own CPU seconds."""
    command = [sys.executable, __file__, "load", engine, address, scenario, str(seconds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    operations, cpu = done.stdout.split()
    return int(operations), float(cpu)


def resident_kib(pid: int) -> int:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--streams", type=int, nargs="*", default=[1000])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = compare_costs(options.rounds, options.seconds) + compare_idle_streams(options.streams)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def compare_costs(rounds: int, seconds: float) -> list[dict[str, object]]:
    """Measure the scenarios against all servers and with all clients."""
    pairs = [("server", engine) for engine in SERVERS] + [("client", engine) for engine in CLIENTS]
    costs: dict[tuple[str, str, str], list[float]] = {}
    rates: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(rounds):
        for scenario in SCENARIOS:
            for side, engine in pairs:
                serving, calling = (engine, "aio") if side == "server" else ("aio", engine)
                with server(serving) as (pid, address):
                    load("aio", address, scenario, 0.2)  # warm
                    before = cpu_seconds(pid)
                    operations, client_cpu = load(calling, address, scenario, seconds)
                    spent = cpu_seconds(pid) - before if side == "server" else client_cpu
                costs.setdefault((side, scenario, engine), []).append(spent / operations * 1e6)
                rates.setdefault((side, scenario, engine), []).append(operations / seconds)
    print(f"{'':8}{'':8}{'':14}{'CPU µs':>10}{'to grpc.aio':>14}{'best op/s':>12}")
    report: list[dict[str, object]] = []
    for scenario in SCENARIOS:
        for side, engine in pairs:
            cost, rate = statistics.median(costs[side, scenario, engine]), max(rates[side, scenario, engine])
            ratio = cost / statistics.median(costs[side, scenario, "aio"])
            print(f"{scenario:8}{side:8}{engine:14}{cost:10.0f}{ratio:14.2f}{rate:12.0f}")
            report.append(
                {"side": side, "scenario": scenario, "engine": engine, "cpu_us": cost, "ratio": ratio, "rate": rate}
            )
    return report


def compare_idle_streams(counts: list[int]) -> list[dict[str, object]]:
    """Open streams on all servers and leave them idle."""
    if counts:
        print(f"{'':8}{'':8}{'':14}{'CPU µs':>10}{'KiB each':>14}{'opened/s':>12}")
    report: list[dict[str, object]] = []
    for count in counts:
        for engine in SERVERS:
            with server(engine) as (pid, address):
                load("aio", address, "echo", 0.2)  # warm
                before, cpu = resident_kib(pid), cpu_seconds(pid)
                command = [sys.executable, __file__, "hold", address, str(count)]
                with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
                    assert holder.stdout is not None
                    assert holder.stdin is not None
                    took = float(holder.stdout.readline())
                    time.sleep(0.5)  # what the server still does about it
                    each, spent = (resident_kib(pid) - before) / count, cpu_seconds(pid) - cpu
                    holder.stdin.close()
            print(f"{'streams':8}{count:<8}{engine:14}{spent / count * 1e6:10.0f}{each:14.1f}{count / took:12.0f}")
            report.append(
                {"streams": count, "engine": engine, "cpu_us": spent / count * 1e6, "kib": each, "rate": count / took}
            )
    return report


def serve_bridge() -> None:
    """Serve the probe service through the bridge."""
    import trio

    from lab.rpc_probe import Probe
    from shovey_trio.rpc.bridge import Listener, open_server

    async def run() -> None:
        listener = Listener(name="a", address="127.0.0.1:0", serves=Probe().serves())
        async with open_server([listener]) as running:
            print(running.port("a"), flush=True)
            await trio.sleep_forever()

    import logging

    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    trio.run(run)


def serve_aio() -> None:
    """Serve the same methods with grpc.aio on asyncio, handlers as its documentation shows them."""
    import asyncio

    from shovey_trio.rpc.bridge import ServerOptions  # before grpc: it sets what grpc reads when it loads

    import grpc  # isort: skip
    from google.protobuf.wrappers_pb2 import StringValue

    payload = StringValue(value="x" * 1024)
    codec = {"request_deserializer": StringValue.FromString, "response_serializer": StringValue.SerializeToString}

    async def unary(request: StringValue, context: grpc.aio.ServicerContext) -> StringValue:
        return request

    async def watch(request: StringValue, context: grpc.aio.ServicerContext) -> None:
        while True:
            await context.write(payload)

    async def upload(requests: object, context: grpc.aio.ServicerContext) -> StringValue:
        count = 0
        while await context.read() is not grpc.aio.EOF:
            count += 1
        return StringValue(value=str(count))

    async def echo(requests: object, context: grpc.aio.ServicerContext) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            await context.write(message)

    async def run() -> None:
        running = grpc.aio.server(options=ServerOptions().arguments())
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(unary, **codec),
            "Watch": grpc.unary_stream_rpc_method_handler(watch, **codec),
            "Upload": grpc.stream_unary_rpc_method_handler(upload, **codec),
            "Echo": grpc.stream_stream_rpc_method_handler(echo, **codec),
        }
        running.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("probe.Probe", handlers)])
        print(running.add_insecure_port("127.0.0.1:0"), flush=True)
        await running.start()
        await running.wait_for_termination()

    asyncio.run(run())


def hold(address: str, count: int) -> None:
    """Open ``count`` streams, say how long it took, and keep them until the standard input ends."""
    import asyncio

    import grpc
    from google.protobuf.wrappers_pb2 import StringValue

    codec = {"request_serializer": StringValue.SerializeToString, "response_deserializer": StringValue.FromString}

    async def run() -> None:
        # Channels to one target share a connection unless their options tell them apart.
        channels = [
            grpc.aio.insecure_channel(address, options=[("connection", number)])
            for number in range(-(-count // STREAMS_ON_A_CONNECTION))
        ]
        calls = []

        async def open_one(number: int) -> None:
            call = channels[number % len(channels)].stream_stream("/probe.Probe/Echo", **codec)()
            calls.append(call)
            await call.write(StringValue(value="x"))
            await call.read()

        began = time.perf_counter()
        await asyncio.gather(*[open_one(number) for number in range(count)])
        print(time.perf_counter() - began, flush=True)
        await asyncio.to_thread(sys.stdin.read)

    asyncio.run(run())


def load_bridge(address: str, scenario: str, seconds: float) -> tuple[int, float]:
    """Return the operations done in ``seconds`` through the bridge, and their CPU seconds."""
    import trio

    from lab.rpc_probe import ECHO, KIB, UNARY, UPLOAD, WATCH, text
    from shovey_trio.rpc.bridge import open_channel

    start = time.process_time()  # imports are not part of the cost
    done = 0
    message = text(KIB)

    async def run() -> None:
        async with open_channel(address, None) as channel:

            async def unary() -> None:
                nonlocal done
                while True:
                    await channel.unary(UNARY, text("x"))
                    done += 1

            async def watch() -> None:
                nonlocal done
                async with channel.stream(WATCH, text("flood")) as stream:
                    async for _ in stream:
                        done += 1

            async def upload() -> None:
                nonlocal done
                async with channel.stream(UPLOAD) as stream:
                    while True:
                        await stream.send(message)
                        done += 1

            async def echo() -> None:
                nonlocal done
                async with channel.stream(ECHO) as stream:
                    while True:
                        await stream.send(message)
                        await stream.receive()
                        done += 1

            worker = {"unary": unary, "watch": watch, "upload": upload, "echo": echo}[scenario]
            with trio.move_on_after(seconds):
                async with trio.open_nursery() as nursery:
                    for _ in range(UNARY_IN_FLIGHT if scenario == "unary" else STREAMS):
                        nursery.start_soon(worker)

    trio.run(run)
    return done, time.process_time() - start


def load_aio(address: str, scenario: str, seconds: float) -> tuple[int, float]:
    """Return the operations done in ``seconds`` by grpc.aio on asyncio, and their CPU seconds."""
    import asyncio

    import grpc
    from google.protobuf.wrappers_pb2 import StringValue

    start = time.process_time()  # imports are not part of the cost
    done = 0
    message = StringValue(value="x" * 1024)
    codec = {"request_serializer": StringValue.SerializeToString, "response_deserializer": StringValue.FromString}

    async def run() -> None:
        async with grpc.aio.insecure_channel(address) as channel:

            async def unary() -> None:
                nonlocal done
                call = channel.unary_unary("/probe.Probe/Unary", **codec)
                while True:
                    await call(StringValue(value="x"))
                    done += 1

            async def watch() -> None:
                nonlocal done
                call = channel.unary_stream("/probe.Probe/Watch", **codec)(StringValue(value="flood"))
                while await call.read() is not grpc.aio.EOF:
                    done += 1

            async def upload() -> None:
                nonlocal done
                call = channel.stream_unary("/probe.Probe/Upload", **codec)()
                while True:
                    await call.write(message)
                    done += 1

            async def echo() -> None:
                nonlocal done
                call = channel.stream_stream("/probe.Probe/Echo", **codec)()
                while True:
                    await call.write(message)
                    await call.read()
                    done += 1

            worker = {"unary": unary, "watch": watch, "upload": upload, "echo": echo}[scenario]
            tasks = [asyncio.create_task(worker()) for _ in range(UNARY_IN_FLIGHT if scenario == "unary" else STREAMS)]
            await asyncio.sleep(seconds)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())
    return done, time.process_time() - start


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", "aio"]:
            serve_aio()
        case ["serve", _]:
            serve_bridge()
        case ["hold", address, count]:
            hold(address, int(count))
        case ["load", engine, address, scenario, seconds]:
            print(*(load_bridge if engine == "bridge" else load_aio)(address, scenario, float(seconds)))
        case _:
            main()
