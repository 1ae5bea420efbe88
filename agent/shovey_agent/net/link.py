"""Keeping the link to the controller: when to call, how long to stay, how long to wait after a failure.

* attached: the stream is open always; a broken one is opened again after a growing, jittered pause, at once when a
  doorbell rings.
* on demand: no stream while idle. A doorbell opens it, or the timer, or serf coming back, or a run that has
  something to tell. A doorbell that rings while the agent is leaving is not lost: ``wanted`` is looked at again
  before anything is waited for.
* With new credentials, a stream that is open is replaced: the new one is up before the old one ends, so that nobody
  sees the node go, and the old one stays when the new one fails.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog
import trio

from shovey_agent.credentials import Credentials
from shovey_agent.desk.desk import OrderDesk
from shovey_agent.net.session import Session
from shovey_agent.program.agent_plan import Reconnect
from shovey_trio.core.errors import Code, ShoveyError, first_leaf
from shovey_trio.core.jobs.model import LinkMode
from shovey_trio.rpc.bridge import ChannelOptions, ClientTls, RpcError, open_channel

_log = structlog.get_logger(__name__)
_PULL_JITTER = 0.2
# What a controller that cannot be talked to right now answers, as opposed to one that will not have this agent.
_PASSING = frozenset({Code.UNAVAILABLE, Code.CANCELLED, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED})


@dataclass(slots=True)
class _Wish:
    """That somebody wants this agent to call, and for which job."""

    event: trio.Event
    job_id: str = ""


@dataclass(eq=False, slots=True, kw_only=True)
class _Stream:
    """One stream, from its opening to its end.

    Attributes:
        before: the one it takes over from, once it is welcome.
        decided: set when it is welcome, or has ended without being so.
        successor: whether another one is taking over from it.
    """

    session: Session
    credentials: Credentials
    before: _Stream | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    decided: trio.Event = field(default_factory=trio.Event)
    successor: bool = False
    ended: trio.Event = field(default_factory=trio.Event)


class ControllerLink:
    """The agent's link. ``serve`` must run; ``wake`` and ``note`` may be called at any time."""

    def __init__(
        self,
        *,
        desk: OrderDesk,
        mode: LinkMode,
        reconnect: Reconnect,
        server: str,
        credentials: Callable[[], Credentials],
        new_session: Callable[[str], Session],
    ) -> None:
        self._desk = desk
        self._mode = mode
        self._reconnect = reconnect
        self._server = server
        self._credentials = credentials
        self._new_session = new_session
        self._session: Session | None = None
        self._wish = _Wish(trio.Event())
        self._streams: set[_Stream] = set()
        # Set when a stream has begun or ended, and when there are new credentials.
        self._change = trio.Event()

    def wake(self, job_id: str) -> None:
        """Asks for a call to the controller now; while a stream is open it is one already."""
        self._wish.job_id = job_id
        self._wish.event.set()

    def note(self, run_id: str, *, output: bool = False) -> None:
        """Notes that there is something to tell of a run; opens the stream if need be."""
        if self._session is not None:
            self._session.note(run_id, output=output)
        elif not output:
            self.wake("")

    def hang_up(self, reason: str) -> None:
        """Ends every stream; the next one begins with all runs as they are then."""
        for stream in self._streams:
            stream.scope.cancel(reason=reason)

    def credentials_changed(self) -> None:
        """Goes on with the credentials of now: an open stream is replaced by one that uses them."""
        self._change.set()
        if self._session is None:
            self.wake("")  # the old ones may be why there is none

    async def serve(self) -> None:
        """Keeps the link until cancelled. No failure of the network or the controller ends it."""
        pause = self._reconnect.delay_min
        self.wake("")  # on demand too, once: so the controller knows this node, and gets what is left in the spool
        while True:
            await self._wait_for_wish()
            # A controller that is called sends orders: somebody must be there to take them.
            await self._desk.wait_ready()
            job_id = self._wish.job_id
            self._wish = _Wish(trio.Event())
            session = await self._call(job_id)
            if session.welcomed:
                pause = self._reconnect.delay_min
            if session.took_leave:
                continue
            await self._pause(pause)
            pause = min(pause * 2, self._reconnect.delay_max)
            self.wake("")

    async def _wait_for_wish(self) -> None:
        pull = self._reconnect.pull_every * random.uniform(1 - _PULL_JITTER, 1 + _PULL_JITTER)  # noqa: S311 - jitter
        with trio.move_on_after(pull):
            await self._wish.event.wait()

    async def _pause(self, seconds: float) -> None:
        with trio.move_on_after(seconds * random.uniform(0.5, 1.0)):  # noqa: S311 - jitter
            await self._wish.event.wait()

    async def _call(self, job_id: str) -> Session:
        """A stay with the controller: one stream, or several of which each takes over from the one before.

        Returns the last one's session; how far it came stands in it.
        """
        async with trio.open_nursery() as nursery:
            current = self._open(nursery, job_id, before=None)
            patience = math.inf
            while not current.ended.is_set():
                self._change = trio.Event()
                with trio.move_on_after(patience):
                    await self._change.wait()
                patience = math.inf
                if not current.session.welcomed or current.credentials == self._credentials():
                    continue
                successor = self._open(nursery, "", before=current)
                await successor.decided.wait()
                if successor.session.welcomed:
                    current = successor
                else:
                    current.successor = False
                    patience = self._reconnect.delay_max
        return current.session

    def _open(self, nursery: trio.Nursery, job_id: str, *, before: _Stream | None) -> _Stream:
        stream = _Stream(session=self._new_session(job_id), credentials=self._credentials(), before=before)
        if before is not None:
            before.successor = True
        self._streams.add(stream)
        nursery.start_soon(self._keep, stream, job_id)
        return stream

    async def _keep(self, stream: _Stream, job_id: str) -> None:
        """Keeps one stream until it ends. No failure of it goes further."""
        tls = ClientTls(
            ca=stream.credentials.ca_certificates,
            certificate=stream.credentials.certificate_chain,
            private_key=stream.credentials.private_key,
        )
        linger = self._reconnect.linger if self._mode is LinkMode.ON_DEMAND else None

        def started() -> None:
            self._session = stream.session
            if stream.before is not None:
                stream.before.scope.cancel(reason="a newer stream has taken over")
            stream.decided.set()
            self._change.set()
            _log.info("controller.attached", server=self._server, woken_by=job_id, took_over=stream.before is not None)

        try:
            with stream.scope:
                async with open_channel(self._server, tls, options=ChannelOptions()) as channel:
                    await stream.session.run(channel, linger=linger, started=started)
            _log.info("controller.detached")
        except* (RpcError, ShoveyError, OSError, trio.BrokenResourceError, trio.TooSlowError) as failures:
            if stream.successor:
                # The controller ends a stream when it has welcomed the next one of the same node.
                _log.info("controller.detached", error=str(first_leaf(failures)))
            else:
                self._note_failure(first_leaf(failures))
        finally:
            self._streams.discard(stream)
            if self._session is stream.session:
                self._session = None
            stream.before = None  # or the first stream of a stay would live as long as the last
            stream.ended.set()
            stream.decided.set()
            self._change.set()

    def _note_failure(self, error: BaseException) -> None:
        match error:
            case RpcError() if error.code not in _PASSING:
                _log.error("controller.refused", server=self._server, reason=error.reason, error=error.message)
            case trio.TooSlowError():
                _log.warning("controller.unreachable", server=self._server, error="no answer in time")
            case _:
                _log.warning("controller.unreachable", server=self._server, error=str(error))


async def renew_in_time(
    credentials: Callable[[], Credentials],
    renew: Callable[[], Awaitable[None]],
    *,
    now: Callable[[], float],
    retry: float = 600.0,
) -> None:
    """Renews the certificate at two thirds of its life, and again after ``retry`` seconds while that fails."""
    while True:
        due = credentials().renew_at
        # Slept in pieces: a wall clock may be set meanwhile.
        while (left := due - now()) > 0:  # noqa: ASYNC110
            await trio.sleep(min(left, 3600.0))
        try:
            await renew()
        except* (RpcError, ShoveyError, OSError, trio.TooSlowError) as failures:
            _log.warning("certificate.renewal_failed", error=str(first_leaf(failures)) or "no answer in time")
            await trio.sleep(retry)
