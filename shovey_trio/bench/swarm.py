"""The simulated agents, as the benchmark sees them: processes that are told what to do and answer when it is done."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import trio

from shovey_trio.bench.simulated_run import Behaviour
from shovey_trio.rpc.client.client import ShoveyClient

_READ = 64 * 1024
_END_DEADLINE = 10.0
_TOKENS_AT_ONCE = 32


class SwarmFailed(Exception):
    """A process of simulated agents has died; the message ends with its last words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """How attaching went: until the last agent was welcomed, and how many attempts failed on the way."""

    seconds: float
    dropped: int


class Swarm:
    """Agents spread evenly over processes; made by ``open_swarm``."""

    def __init__(self, workers: Sequence[_WorkerProcess]) -> None:
        self._workers = workers
        self.names: list[str] = []

    async def enroll(self, client: ShoveyClient, agents: int) -> None:
        """Enrols as many more as are missing, each with a token and a certificate request of its own."""
        missing = [f"sim-{number:05}" for number in range(len(self.names) + 1, agents + 1)]
        tokens: dict[str, str] = {}
        limiter = trio.CapacityLimiter(_TOKENS_AT_ONCE)
        where: dict[str, str] = {}

        async def ask(node: str) -> None:
            async with limiter:
                answer = await client.create_enrollment_token(node)
            tokens[node] = answer.token
            where.update(address=answer.enroll_address, ca=answer.ca_certificates.decode())

        async with trio.open_nursery() as nursery:
            for node in missing:
                nursery.start_soon(ask, node)
        if not missing:
            return
        organization = (await client.get_server_info()).organization
        share = self._shares(missing)
        await self._all(
            [
                {
                    "do": "enroll",
                    **where,
                    "organization": organization,
                    "tokens": {node: tokens[node] for node in names},
                }
                for names in share
            ]
        )
        self.names += missing

    async def behave(self, commands: Mapping[str, Behaviour]) -> None:
        """Teaches the agents commands."""
        document = {name: asdict(each) for name, each in commands.items()}
        await self._all([{"do": "behave", "commands": document}] * len(self._workers))

    async def attach(self, agents: int) -> Attached:
        """Has ``agents`` of those enrolled attached; the missing ones connect at once."""
        shares = self._shares(self.names[:agents])
        answers = await self._all([{"do": "attach", "agents": len(share)} for share in shares])
        return Attached(
            seconds=max(each["seconds"] for each in answers), dropped=sum(each["dropped"] for each in answers)
        )

    async def detach(self) -> None:
        """Has all of them leave."""
        await self._all([{"do": "detach"}] * len(self._workers))

    async def tally(self) -> dict[str, int]:
        """What they have seen, all together."""
        answers = await self._all([{"do": "tally"}] * len(self._workers))
        return {key: sum(each[key] for each in answers) for key in answers[0] if isinstance(answers[0][key], int)}

    def _shares(self, names: Sequence[str]) -> list[Sequence[str]]:
        """Round robin by the number in the name, so that an agent stays with its process whoever is asked for."""
        count = len(self._workers)
        return [[name for name in names if int(name[4:]) % count == worker] for worker in range(count)]

    async def _all(self, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        answers: dict[int, dict[str, Any]] = {}

        async def ask(number: int, worker: _WorkerProcess, request: dict[str, Any]) -> None:
            answers[number] = await worker.ask(request)

        async with trio.open_nursery() as nursery:
            for number, (worker, request) in enumerate(zip(self._workers, requests, strict=True)):
                nursery.start_soon(ask, number, worker, request)
        return [answers[number] for number in range(len(self._workers))]


class _WorkerProcess:
    """The master's end of ``swarm_worker``. One question at a time."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: trio.Process | None = None
        self._buffer = bytearray()

    async def start(self) -> None:
        with self._log.open("wb") as log:
            self._process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "shovey_trio.bench.swarm_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Raises ``SwarmFailed`` when the process has died."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            await self._process.stdin.send_all(json.dumps(request).encode() + b"\n")
            while (end := self._buffer.find(b"\n")) < 0:
                data = await self._process.stdout.receive_some(_READ)
                if not data:
                    raise SwarmFailed(self._last_words())
                self._buffer += data
        except trio.BrokenResourceError:
            raise SwarmFailed(self._last_words()) from None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def end(self) -> None:
        """Kills it and waits for that; to be shielded by the caller."""
        process = self._process
        if process is None:
            return
        # Thousands of connections take a while to close in order; nobody needs that order any more.
        process.kill()
        await process.wait()

    def _last_words(self) -> str:
        return "simulated agents have died:\n" + "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-15:])


@asynccontextmanager
async def open_swarm(directory: Path, processes: int) -> AsyncIterator[Swarm]:
    """Processes for simulated agents; all are ended at the end, also when cancelled.

    Args:
        directory: for their logs; the caller removes it.
        processes: how many.
    """
    workers = [_WorkerProcess(directory / f"swarm-{number}.log") for number in range(processes)]
    try:
        for worker in workers:
            await worker.start()
        yield Swarm(workers)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + processes * _END_DEADLINE):
            for worker in workers:
                await worker.end()
