"""The agent, put together: one ``trio.run`` around executor, link, doorbells and renewal."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from shovey_agent.cgroup import find_delegated_cgroup
from shovey_agent.config import DEFAULT_WHITELIST_FILE, AgentSettings
from shovey_agent.credentials import Credentials, CredentialStore
from shovey_agent.doorbells import DoorbellListener
from shovey_agent.enroll import renew
from shovey_agent.enroll_call import call_renew
from shovey_agent.epoch import EpochFile
from shovey_agent.executor import Executor, ExecutorConfig, open_executor
from shovey_agent.gate import VOID_LIFETIME, OrderGate
from shovey_agent.link import ControllerLink, renew_in_time
from shovey_agent.nonces import NonceFile, open_nonces
from shovey_agent.proc_posix import boot_id
from shovey_agent.runs import OutputGrown, Started
from shovey_agent.session import Hello, Session
from shovey_agent.spool import SpoolLimits
from shovey_agent.whitelist_file import WhitelistFile
from shovey_trio import __version__
from shovey_trio.config_types import split_address
from shovey_trio.core.order_signing import KeySet
from shovey_trio.core.orders import NodeIdentity
from shovey_trio.core.serf_wire import STREAM_DOORBELLS, STREAM_USER_EVENTS
from shovey_trio.core.whitelist import DEFAULT_WHITELIST
from shovey_trio.identity.files import read_secret
from shovey_trio.observe.systemd import notify
from shovey_trio.rpc.bridge import open_bridge
from shovey_trio.serf.link import SerfLink, SerfSettings

_log = structlog.get_logger(__name__)
_RENEWAL_DEADLINE = 30.0
# Orders that live longer are refused: a node whose nonce file is damaged refuses every order for this long.
_LONGEST_ORDER = 7200.0


@dataclass(slots=True)
class _Trust:
    """What may change while the agent runs: its credentials and the controller's signing keys."""

    store: CredentialStore
    credentials: Credentials
    keys: KeySet

    def learn_keys(self, keys: KeySet) -> None:
        """Keeps newer signing keys, told by the controller over a stream that mutual TLS vouches for."""
        if self.store.save_signing_keys(keys):
            self.keys = keys
            _log.info("keys.changed", serial=keys.serial)


async def run_agent(settings: AgentSettings) -> None:
    """Runs the agent until TERM or INT. Its commands go on without it; the next start adopts them.

    Raises:
        NotEnrolled: there are no credentials.
        ShoveyError: something in the state directory or the whitelist is unusable; the message names it.
    """
    state_dir = settings.agent.state_dir
    store = CredentialStore(state_dir)
    trust = await trio.to_thread.run_sync(
        lambda: _Trust(store=store, credentials=store.load(), keys=store.load_signing_keys())
    )
    whitelist = await trio.to_thread.run_sync(_open_whitelist, settings.agent.whitelist)
    epoch = EpochFile(state_dir / "epoch")
    now = time.time()
    nonces = await open_nonces(state_dir / "nonces", now=now, longest_life=_LONGEST_ORDER)
    voided = await open_nonces(state_dir / "voided", now=now, longest_life=_LONGEST_ORDER + VOID_LIFETIME)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        # One asyncio loop for all calls: an on-demand agent opens and closes channels all day.
        async with open_bridge(), open_executor(executor_config(settings)) as executor:
            await executor.adopt()
            gate = _gate(trust, nonces, voided, epoch, whitelist)
            link = _link(settings, trust, executor, gate)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_tell_news, executor, link)
                nursery.start_soon(link.serve)
                nursery.start_soon(_keep_certificate, trust, link)
                if settings.serf.enabled:
                    nursery.start_soon(_doorbells(settings, trust, link).serve)
                _log.info(
                    "agent.ready",
                    node=trust.credentials.node,
                    organization=trust.credentials.organization,
                    link=settings.agent.link.value,
                    commands=len(whitelist.current().entries),
                )
                notify("READY=1")
                await _until_told(signals, whitelist)
                notify("STOPPING=1")
                nursery.cancel_scope.cancel(reason="the agent was told to stop")
    _log.info("agent.stopped")


def _open_whitelist(path: Path) -> WhitelistFile:
    return WhitelistFile(path, when_missing=DEFAULT_WHITELIST if path == DEFAULT_WHITELIST_FILE else None)


async def _until_told(signals: AsyncIterator[int], whitelist: WhitelistFile) -> None:
    async for number in signals:
        if number != signal.SIGHUP:
            return
        await trio.to_thread.run_sync(whitelist.current)


async def _tell_news(executor: Executor, link: ControllerLink) -> None:
    async for event in executor.events:
        match event:
            case OutputGrown(run_id=run_id):
                link.note(run_id, output=True)
            case Started(run_id=run_id):
                link.note(run_id)
            case _:
                link.note(event.report.run_id)


async def _keep_certificate(trust: _Trust, link: ControllerLink) -> None:
    async def renew_now() -> None:
        with trio.fail_after(_RENEWAL_DEADLINE):
            trust.credentials = await renew(trust.credentials, trust.store, call_renew)
        _log.info("certificate.renewed", expires_at=trust.credentials.expires_at)
        link.reconnect("the certificate was renewed")

    await renew_in_time(lambda: trust.credentials, renew_now, now=time.time)


def executor_config(settings: AgentSettings) -> ExecutorConfig:
    """What the executor is told, whatever the protocol."""
    return ExecutorConfig(
        state_dir=settings.agent.state_dir,
        max_runs=settings.runs.max_concurrent,
        limits=SpoolLimits(head_cap=settings.runs.output_cap, total_cap=settings.runs.spool_cap),
        cgroup=find_delegated_cgroup(),
    )


def _gate(trust: _Trust, nonces: NonceFile, voided: NonceFile, epoch: EpochFile, whitelist: WhitelistFile) -> OrderGate:
    credentials = trust.credentials
    identity = NodeIdentity(
        organization=credentials.organization,
        node=credentials.node,
        agent_instance=credentials.agent_instance,
    )
    return OrderGate(
        identity=identity,
        keys=lambda: trust.keys,
        nonces=nonces,
        voided=voided,
        epoch=epoch,
        whitelist=whitelist,
    )


def _link(settings: AgentSettings, trust: _Trust, executor: Executor, gate: OrderGate) -> ControllerLink:
    hello = Hello(
        agent_instance=trust.credentials.agent_instance,
        agent_version=__version__,
        link=settings.agent.link,
        tags=settings.agent.tags,
        boot_id=boot_id(),
    )

    def new_session(woken_by: str) -> Session:
        return Session(hello=hello, executor=executor, gate=gate, new_keys=trust.learn_keys, woken_by=woken_by)

    return ControllerLink(
        executor=executor,
        mode=settings.agent.link,
        reconnect=settings.reconnect,
        server=settings.agent.server or trust.credentials.control_address,
        credentials=lambda: trust.credentials,
        new_session=new_session,
    )


def _doorbells(settings: AgentSettings, trust: _Trust, link: ControllerLink) -> DoorbellListener:
    host, port = split_address(settings.serf.address)
    key_file = settings.serf.auth_key_file
    auth_key = read_secret(key_file).decode().strip() if key_file else None
    events = (STREAM_DOORBELLS, STREAM_USER_EVENTS)
    return DoorbellListener(
        link=SerfLink(SerfSettings(host=host, port=port, auth_key=auth_key, events=events)),
        organization=trust.credentials.organization,
        node=trust.credentials.node,
        keys=lambda: trust.keys,
        wake=link.wake,
    )
