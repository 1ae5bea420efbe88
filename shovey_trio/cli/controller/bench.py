"""``shovey-trio bench``: measures this version on this machine, with a real daemon and simulated agents."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shovey_trio.bench.figures import Figure
    from shovey_trio.bench.stage import BenchOptions

_INTERRUPTED = 130
_FAILED = 1
_NEEDS_CHECKOUT = "what is emulated there is not installed; run it from a checkout, with PYTHONPATH=tests"


@click.command()
@click.argument("scenarios", nargs=-1, metavar="[SCENARIO]...")
@click.option("--list", "list_them", is_flag=True, help="Say which scenarios there are.")
@click.option(
    "--agents", default=1000, show_default=True, type=click.IntRange(1, 19_000), help="Simulated agents attached."
)
@click.option(
    "--processes", default=1, show_default=True, type=click.IntRange(1, 64), help="Processes they are spread over."
)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1, 1000), help="How often to repeat.")
@click.option(
    "--seconds", default=10.0, show_default=True, type=click.FloatRange(1, 3600), help="How long to watch what goes on."
)
@click.option(
    "--history-runs",
    default=1_000_000,
    show_default=True,
    type=click.IntRange(100, 10_000_000),
    help="Runs stored before `history`.",
)
@click.option(
    "--output-mib",
    default=200,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="Output of all agents together in `output`.",
)
@click.option(
    "--peer",
    type=click.Choice(["goiardi"]),
    help="Measure this server beside ours, where a scenario has old nodes; it must be installed.",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write the result there."
)
def bench(  # noqa: PLR0917 - click passes them by name
    scenarios: tuple[str, ...],
    list_them: bool,
    agents: int,
    processes: int,
    rounds: int,
    seconds: float,
    history_runs: int,
    output_mib: int,
    peer: str | None,
    json_file: Path | None,
) -> None:
    """Measure named scenarios, or all of them.

    A real daemon runs in a temporary directory, with TLS 1.3 and fsync on. The agents are simulated, many in a
    process: they speak the real protocol over connections of their own, enrolled and verifying signatures, but run no
    commands. Daemon and load share this machine.
    """
    from shovey_trio.bench.scenarios import SCENARIOS, is_here
    from shovey_trio.bench.stage import BenchOptions

    if list_them:
        for name, (_, summary) in SCENARIOS.items():
            click.echo(f"{name:14}{summary}")
        return
    peer = _installed(peer)
    unknown = [name for name in scenarios if name not in SCENARIOS]
    if unknown:
        raise click.UsageError(f"no such scenario: {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    absent = [name for name in scenarios or SCENARIOS if not is_here(name)]
    if scenarios and absent:
        raise click.UsageError(f"{', '.join(absent)}: {_NEEDS_CHECKOUT}")
    if absent:
        click.echo(f"{', '.join(absent)} left out: {_NEEDS_CHECKOUT}", err=True)
    options = BenchOptions(
        agents=agents,
        processes=processes,
        rounds=rounds,
        seconds=seconds,
        history_runs=history_runs,
        output_mib=output_mib,
        peer=peer,
    )
    sys.exit(_run(scenarios or _possible(name for name in SCENARIOS if name not in absent), options, json_file))


def _possible(scenarios: Iterable[str]) -> tuple[str, ...]:
    """All scenarios but those that need what is not installed, which is said."""
    from shovey_trio.demo.serf_agents import find_serf

    if find_serf() is not None:
        return tuple(scenarios)
    click.echo("serf is not installed (Debian: apt install serf): on-demand is left out", err=True)
    return tuple(name for name in scenarios if name != "on-demand")


def _installed(peer: str | None) -> str:
    """The peer, or nothing when none is wanted or it is not there, which is said."""
    from shovey_trio.bench.scenarios import has_peer

    if peer and not has_peer(peer):
        click.echo(f"{peer} is not installed (Debian: apt install {peer}): left out", err=True)
        return ""
    return peer or ""


def _run(names: Sequence[str], options: BenchOptions, json_file: Path | None) -> int:
    import logging
    import signal

    import structlog
    import trio

    from shovey_trio.bench.figures import table
    from shovey_trio.bench.machine import head, machine
    from shovey_trio.bench.run import run_scenarios
    from shovey_trio.bench.stage import WrongResult
    from shovey_trio.bench.swarm import SwarmFailed
    from shovey_trio.demo.processes import ProcessFailed

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    click.echo(head(machine()))
    click.echo("daemon and load on this machine; TLS 1.3 and fsync on")

    def tell(name: str, figures: Sequence[Figure]) -> None:
        click.secho(f"\n{name}", bold=True)
        click.echo("\n".join(table(figures)))

    document: dict[str, Any] = {}
    failed = False

    async def measure() -> None:
        async with trio.open_nursery() as nursery:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:

                async def watch_signals() -> None:
                    async for _ in signals:
                        nursery.cancel_scope.cancel(reason="interrupted")

                nursery.start_soon(watch_signals)
                document.update(await run_scenarios(names, options, tell))
                nursery.cancel_scope.cancel(reason="all is measured")

    try:
        trio.run(measure)
    except* (WrongResult, SwarmFailed, ProcessFailed, trio.TooSlowError) as failures:
        for failure in failures.exceptions:
            click.echo(f"error: {failure}", err=True)
        failed = True
    if failed:
        return _FAILED
    if not document:
        return _INTERRUPTED
    if json_file is not None:
        json_file.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0
