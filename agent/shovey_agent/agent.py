"""The agent, put together: one ``trio.run`` around desk, link, doorbells and renewal.

The desk is where orders are acted on: in this process, or, where ``launcher.socket`` is set, in the launcher's
(``launcher``). Then this process needs no right but to talk to the network, to serf and to that socket.

``python -m shovey_agent.agent PLAN`` is what ``shovey-agent run`` becomes once the settings are read (``replaced``).
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    # structlog imports rich where it is installed, for tracebacks that are not wanted here: 8 MiB on every node.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # None: importing it is an ImportError

import structlog
import trio

from shovey_agent.credentials import Credentials, CredentialStore
from shovey_agent.desk.desk import OrderDesk
from shovey_agent.desk.trusted_keys import TrustedKeys
from shovey_agent.net.doorbells import DoorbellListener
from shovey_agent.net.enroll import call_renew, renew
from shovey_agent.net.link import ControllerLink, renew_in_time
from shovey_agent.net.session import Hello, Session
from shovey_agent.program.agent_plan import AgentPlan
from shovey_agent.program.replaced import run_replaced
from shovey_agent.program.startup_memory import settle_memory
from shovey_agent.supervisor.proc_posix import boot_id
from shovey_trio import __version__
from shovey_trio.core.addresses import split_address
from shovey_trio.core.serf.wire import STREAM_DOORBELLS, STREAM_USER_EVENTS
from shovey_trio.core.trust.key_sets import KeySetRefused
from shovey_trio.core.trust.key_trust import PublishedKeys
from shovey_trio.core.trust.orders import NodeIdentity
from shovey_trio.identity.files import read_secret
from shovey_trio.observe.systemd import notify
from shovey_trio.observe.threads import run_in_thread
from shovey_trio.rpc.bridge import open_bridge
from shovey_trio.serf.link import SerfLink, SerfSettings

if TYPE_CHECKING:
    from shovey_agent.desk.whitelist_file import WhitelistFile

_log = structlog.get_logger(__name__)
_RENEWAL_DEADLINE = 30.0


@dataclass(slots=True)
class _Trust:
    """What may change while the agent runs: its credentials and what it believes of the controller's signing keys."""

    store: CredentialStore
    credentials: Credentials
    keys: TrustedKeys

    @classmethod
    def load(cls, store: CredentialStore) -> _Trust:
        credentials = store.load()
        return cls(
            store=store, credentials=credentials, keys=TrustedKeys.load(store.signing_keys, credentials.organization)
        )

    @property
    def identity(self) -> NodeIdentity:
        return NodeIdentity(
            organization=self.credentials.organization,
            node=self.credentials.node,
            agent_instance=self.credentials.agent_instance,
        )

    async def learn_keys(self, offered: PublishedKeys, desk: OrderDesk) -> None:
        """Takes what the controller says of its keys; what is not believed changes nothing and ends nothing."""
        try:
            await run_in_thread(self.keys.learn, offered)
        except KeySetRefused as error:
            _log.error("keys.refused", reason=error.refusal.value, error=error.message)
            return
        except OSError as error:
            _log.error("keys.not_written", error=str(error))
        try:
            await desk.learn_keys(offered.signed)
        except OSError as error:
            # Its disk is full, or it is away, and then this stream ends too.
            _log.error("keys.not_passed_on", error=str(error))


async def run_agent(plan: AgentPlan) -> None:
    """Runs the agent until TERM or INT. Its commands go on without it; the next start adopts them.

    Raises:
        NotEnrolled: there are no credentials.
        ShoveyError: something in the state directory or the whitelist is unusable; the message names it.
    """
    trust = await run_in_thread(_Trust.load, CredentialStore(Path(plan.state_dir)))
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        # One asyncio loop for all calls: an on-demand agent opens and closes channels all day.
        async with open_bridge(), _open_desk(plan, trust) as (desk, whitelist):
            link = _link(plan, trust, desk)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(desk.serve, link)
                nursery.start_soon(link.serve)
                nursery.start_soon(_keep_certificate, trust, link)
                nursery.start_soon(settle_memory)
                if plan.serf:
                    nursery.start_soon(_doorbells(plan, trust, link).serve)
                _log.info(
                    "agent.ready",
                    node=trust.credentials.node,
                    organization=trust.credentials.organization,
                    link=plan.link.value,
                    commands=None if whitelist is None else len(whitelist.current().entries),
                )
                notify("READY=1")
                await _until_told(signals, whitelist)
                notify("STOPPING=1")
                nursery.cancel_scope.cancel(reason="the agent was told to stop")
    _log.info("agent.stopped")


@asynccontextmanager
async def _open_desk(plan: AgentPlan, trust: _Trust) -> AsyncIterator[tuple[OrderDesk, WhitelistFile | None]]:
    """The desk, and the whitelist where that is this process's to read; what the other form needs is not loaded."""
    if plan.launcher:
        from shovey_agent.desk.client import RemoteDesk

        yield RemoteDesk(Path(plan.launcher), trust.identity), None
        return
    from shovey_agent.desk.local import open_local_desk
    from shovey_agent.desk.whitelist_file import open_whitelist
    from shovey_agent.run.executor import ExecutorConfig
    from shovey_agent.run.spool import SpoolLimits
    from shovey_agent.supervisor.cgroup import find_delegated_cgroup

    whitelist = await run_in_thread(open_whitelist, Path(plan.whitelist))
    config = ExecutorConfig(
        state_dir=Path(plan.state_dir),
        max_runs=plan.max_runs,
        limits=SpoolLimits(head_cap=plan.output_cap, total_cap=plan.spool_cap, max_processes=plan.max_processes),
        cgroup=find_delegated_cgroup(),
    )
    async with open_local_desk(config, identity=trust.identity, keys=trust.keys, whitelist=whitelist) as desk:
        yield desk, whitelist


async def _until_told(signals: AsyncIterator[int], whitelist: WhitelistFile | None) -> None:
    async for number in signals:
        if number != signal.SIGHUP:
            return
        if whitelist is not None:
            await run_in_thread(whitelist.current)


async def _keep_certificate(trust: _Trust, link: ControllerLink) -> None:
    async def renew_now() -> None:
        with trio.fail_after(_RENEWAL_DEADLINE):
            trust.credentials = await renew(trust.credentials, trust.store, call_renew)
        _log.info("certificate.renewed", expires_at=trust.credentials.expires_at)
        link.credentials_changed()

    await renew_in_time(lambda: trust.credentials, renew_now, now=time.time)


def _link(plan: AgentPlan, trust: _Trust, desk: OrderDesk) -> ControllerLink:
    hello = Hello(
        agent_instance=trust.credentials.agent_instance,
        agent_version=__version__,
        link=plan.link,
        tags=plan.tags,
        boot_id=boot_id(),
    )

    async def learn_keys(offered: PublishedKeys) -> None:
        await trust.learn_keys(offered, desk)

    taking = trio.Lock()

    def new_session(woken_by: str) -> Session:
        return Session(hello=hello, desk=desk, new_keys=learn_keys, woken_by=woken_by, taking=taking)

    return ControllerLink(
        desk=desk,
        mode=plan.link,
        reconnect=plan.reconnect,
        server=plan.server or trust.credentials.control_address,
        credentials=lambda: trust.credentials,
        new_session=new_session,
    )


def _doorbells(plan: AgentPlan, trust: _Trust, link: ControllerLink) -> DoorbellListener:
    host, port = split_address(plan.serf)
    auth_key = read_secret(Path(plan.serf_key_file)).decode().strip() if plan.serf_key_file else None
    events = (STREAM_DOORBELLS, STREAM_USER_EVENTS)
    return DoorbellListener(
        link=SerfLink(SerfSettings(host=host, port=port, auth_key=auth_key, events=events, follow_members=False)),
        organization=trust.credentials.organization,
        node=trust.credentials.node,
        keys=trust.keys.usable,
        wake=link.wake,
    )


if __name__ == "__main__":
    sys.exit(run_replaced(run_agent, AgentPlan.from_document(json.loads(sys.argv[1]))))
