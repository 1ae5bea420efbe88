"""The agent as a schob, put together: executor and spool are the same, only the way to the server is another."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx2
import structlog
import trio

from shovey_agent.config import AgentSettings
from shovey_agent.desk.nonces import open_nonces
from shovey_agent.desk.whitelist_file import WhitelistFile
from shovey_agent.program.startup_memory import settle_memory
from shovey_agent.run.executor import Executor, ExecutorConfig, open_executor
from shovey_agent.run.runs import Finished, OutputGrown, Started
from shovey_agent.run.spool import SpoolLimits
from shovey_agent.shovey.gate import MEMORY, LegacyGate
from shovey_agent.shovey.listener import ORDER_EVENTS, LegacyListener
from shovey_agent.shovey.progress import ProgressFiles
from shovey_agent.shovey.reporter import RunReporter
from shovey_agent.shovey.server import ServerIdentity, ShoveyServer
from shovey_agent.supervisor.cgroup import find_delegated_cgroup
from shovey_trio.core.addresses import split_address
from shovey_trio.core.chef.signing import load_private_key, load_public_key
from shovey_trio.identity.files import check_private, make_secret_directory, read_public, read_secret
from shovey_trio.observe.systemd import notify
from shovey_trio.observe.threads import run_in_thread
from shovey_trio.serf.link import SerfLink, SerfSettings

_log = structlog.get_logger(__name__)


async def run_legacy_agent(settings: AgentSettings) -> None:
    """Runs the agent until TERM or INT. Its commands go on without it; the next start adopts and reports them.

    Raises:
        ShoveyError: a key or the whitelist is unusable; the message names it.
    """
    legacy, state_dir = settings.legacy, settings.agent.state_dir
    identity = await run_in_thread(_identity, settings)
    await run_in_thread(_prepare_state, state_dir)
    whitelist = await run_in_thread(WhitelistFile, settings.agent.whitelist)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        # No deadline of the client's own: each report has one.
        async with open_executor(_executor_config(settings)) as executor, httpx2.AsyncClient(timeout=None) as client:
            await executor.adopt()
            runs = await open_nonces(state_dir / "legacy-runs", longest_life=MEMORY + legacy.time_slew)
            files = await run_in_thread(ProgressFiles, state_dir / "legacy")
            gate = LegacyGate(
                node=identity.node,
                public_key=Path(legacy.sign_pub_key),
                whitelist=whitelist,
                runs=runs,
                time_slew=legacy.time_slew,
            )
            async with trio.open_nursery() as nursery:
                server = ShoveyServer(identity, client)
                reporter = RunReporter(
                    executor=executor, server=server, files=files, node=identity.node, nursery=nursery
                )
                for known in executor.known_runs():
                    reporter.note(known.run_id)
                listener = LegacyListener(
                    link=_link(settings), node=identity.node, gate=gate, executor=executor, reporter=reporter
                )
                nursery.start_soon(_tell_news, executor, reporter)
                nursery.start_soon(listener.serve)
                nursery.start_soon(settle_memory)
                commands = len(whitelist.current().entries)
                _log.info("agent.ready", node=identity.node, server=legacy.endpoint, commands=commands)
                notify("READY=1")
                async for number in signals:
                    if number != signal.SIGHUP:
                        break
                    await run_in_thread(whitelist.current)
                notify("STOPPING=1")
                nursery.cancel_scope.cancel(reason="the agent was told to stop")
    _log.info("agent.stopped")


async def _tell_news(executor: Executor, reporter: RunReporter) -> None:
    async for event in executor.events:
        match event:
            case Started(run_id=run_id) | OutputGrown(run_id=run_id):
                reporter.note(run_id)
            case Finished(report=report):
                reporter.note(report.run_id)


def _prepare_state(state_dir: Path) -> None:
    """Makes the state directory, or holds when it is closed to others with what is in it."""
    make_secret_directory(state_dir)
    check_private((state_dir, *(state_dir / name for name in ("runs", "legacy", "legacy-runs"))))


def _executor_config(settings: AgentSettings) -> ExecutorConfig:
    return ExecutorConfig(
        state_dir=settings.agent.state_dir,
        max_runs=settings.runs.max_concurrent,
        limits=SpoolLimits(
            head_cap=settings.runs.output_cap,
            total_cap=settings.runs.spool_cap,
            max_processes=settings.runs.max_processes,
        ),
        cgroup=find_delegated_cgroup(),
    )


def _identity(settings: AgentSettings) -> ServerIdentity:
    legacy = settings.legacy
    # Only to fail at once: it is read again for each order.
    load_public_key(read_public(Path(legacy.sign_pub_key)).decode())
    endpoint = legacy.endpoint.rstrip("/")
    if legacy.organization and "/organizations/" not in endpoint:
        endpoint = f"{endpoint}/organizations/{legacy.organization}"
    key = load_private_key(read_secret(Path(legacy.key_file)).decode())
    return ServerIdentity(endpoint=endpoint, node=legacy.node_name, key=key)


def _link(settings: AgentSettings) -> SerfLink:
    host, port = split_address(settings.serf.address)
    key_file = settings.serf.auth_key_file
    auth_key = read_secret(key_file).decode().strip() if key_file else None
    return SerfLink(SerfSettings(host=host, port=port, auth_key=auth_key, events=ORDER_EVENTS, follow_members=False))
