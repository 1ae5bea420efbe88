"""``shovey-trio demo``: the main job of this project, shown with real processes on loopback."""

from __future__ import annotations

import math
import os
import signal
import sys
import tempfile
from pathlib import Path

import click
import trio

from shovey_trio.demo.fleet import Fleet, NodeSpec, open_fleet
from shovey_trio.demo.processes import program
from shovey_trio.demo.serf_agents import find_serf
from shovey_trio.v1 import job_pb2

_START_DEADLINE = 90.0
_STEP_DEADLINE = 30.0
_INTERRUPTED = 130

_WHITELIST = {
    "report": "sh -c 'uname -sr; for step in 1 2 3; do echo step $step of 3; sleep 0.4; done; df -h / | tail -n 1'",
    "check-disk": "sh -c 'echo looking at $SHOVEY_NODE; sleep 0.3; "
    "if [ $SHOVEY_NODE = web-2 ]; then echo the disk is full >&2; exit 3; fi; echo the disk is fine'",
    # A stubborn one: ignores TERM, and has a child in a session of its own.
    "migrate": 'sh -c \'trap "" TERM; setsid sleep 600 & echo pids $$ $!; '
    "n=0; while :; do n=$((n+1)); echo row $n; sleep 0.3; done'",
}


@click.command()
@click.option("--no-serf", is_flag=True, help="Use the agents' streams alone, even where serf is installed.")
def demo(no_serf: bool) -> None:
    """Show a job that succeeds, one that fails on a node and one that is cancelled, on three agents on loopback.

    Everything runs in a temporary directory and is gone at the end.
    """
    sys.exit(trio.run(_main, not no_serf))


async def _main(serf_wanted: bool) -> int:
    interrupted = False
    with tempfile.TemporaryDirectory(prefix="shovey-demo-") as directory:
        async with trio.open_nursery() as nursery:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:

                async def watch_signals() -> None:
                    nonlocal interrupted
                    async for _ in signals:
                        if not interrupted:
                            _say("\ninterrupted: stopping everything")
                        interrupted = True
                        nursery.cancel_scope.cancel(reason="interrupted")

                nursery.start_soon(watch_signals)
                await _show(Path(directory), serf=serf_wanted and find_serf() is not None)
                nursery.cancel_scope.cancel(reason="the demo is over")
    if interrupted:
        return _INTERRUPTED
    _say("\nEverything was stopped and removed. What to do next: README.md, `shovey-trio init --help`.")
    return 0


async def _show(directory: Path, *, serf: bool) -> None:
    if serf:
        _say("serf is installed: starting four real serf agents; web-3 is on demand and will be woken by a doorbell")
    else:
        _say("serf is not used here (not installed, or --no-serf): orders travel over the agents' streams alone")
    nodes = [
        NodeSpec(name="web-1", tags={"role": "web"}, whitelist=_WHITELIST),
        NodeSpec(name="web-2", tags={"role": "web"}, whitelist=_WHITELIST),
        NodeSpec(
            name="web-3",
            tags={"role": "web"},
            link="on-demand" if serf else "attached",
            whitelist=_WHITELIST,
            settings={"reconnect.linger": "0.5s"},
        ),
    ]
    _say("starting a controller (TLS 1.3, SQLite) and three agents; enrolling each with a one-time token")
    with trio.CancelScope() as starting:
        starting.deadline = trio.current_time() + _START_DEADLINE
        async with open_fleet(directory, nodes, serf=serf) as fleet:
            starting.deadline = math.inf
            await _show_jobs(fleet)
    if starting.cancelled_caught:
        raise SystemExit(f"the demo failed: the fleet was not up within {_START_DEADLINE:g} s")


async def _show_jobs(fleet: Fleet) -> None:
    _title("1. A job that succeeds on all nodes")
    await _shovey(fleet, "job", "start", "report", "--all")
    _title("2. A job that fails on one node")
    await _shovey(fleet, "job", "start", "check-disk", "--tag", "role=web")
    _title("3. A job that is cancelled while it runs: it ignores TERM and hides a child in another session")
    await _cancelled_job(fleet)
    _title("4. The nodes")
    await _shovey(fleet, "node", "status")


async def _cancelled_job(fleet: Fleet) -> None:
    async with fleet.open_client() as client:
        await _shovey(fleet, "job", "start", "migrate", "web-1", "web-2", "--kill-grace", "1s", "--background")
        job = await anext(aiter(client.list_jobs(page_size=1)))
        with trio.fail_after(_STEP_DEADLINE):
            pids = [pid for name in ("web-1", "web-2") for pid in await _pids(fleet, job.id, name)]
        _say(f"running as processes {', '.join(map(str, pids))}")
        await _shovey(fleet, "job", "cancel", job.id)
        await _shovey(fleet, "job", "status", job.id)
        runs = [run async for run in client.list_runs(job.id)]
    alive = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    cancelled = all(run.state == job_pb2.RUN_STATE_CANCELLED for run in runs)
    if alive or not cancelled:
        raise SystemExit(f"the demo failed: alive {alive}, cancelled {cancelled}")
    _say(f"looked for processes {', '.join(map(str, pids))} in /proc: all of them are gone")


async def _pids(fleet: Fleet, job_id: str, node: str) -> list[int]:
    """The process ids that the command prints in its first line."""
    async with fleet.open_client() as client, client.read_output(job_id, node, follow=True) as answers:
        text = b""
        async for answer in answers:
            text += answer.chunk.data
            first, newline, _ = text.partition(b"\n")
            if newline:
                return [int(word) for word in first.split()[1:]]
    raise SystemExit("the demo failed: a command ended early")


async def _shovey(fleet: Fleet, *arguments: str) -> None:
    """Runs the operator's command line, for all to see."""
    _say(f"$ shovey {' '.join(arguments)}", bold=True)
    environ = {**os.environ, "SHOVEY_CONFIG": str(fleet.client_directory.root)}
    with trio.fail_after(_STEP_DEADLINE):
        await trio.run_process([*program("shovey"), *arguments], env=environ, check=False, stdin=b"")


def _title(text: str) -> None:
    click.echo()
    click.secho(f"── {text} ", fg="cyan", bold=True)


def _say(text: str, *, bold: bool = False) -> None:
    click.secho(text, bold=bold)
    sys.stdout.flush()
