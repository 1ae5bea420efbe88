"""Keeping the link to the controller: when to call, how long to stay, how long to wait after a failure.

* attached: the stream is open always; a broken one is opened again after a growing, jittered pause, at once when a
  doorbell rings.
* on demand: no stream while idle. A doorbell opens it, or the timer, or serf coming back, or a run that has
  something to tell. A doorbell that rings while the agent is leaving is not lost: ``wanted`` is looked at again
  before anything is waited for.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
import trio

from shovey_agent.config import ReconnectSection
from shovey_agent.credentials import Credentials
from shovey_agent.executor import Executor
from shovey_agent.session import Session
from shovey_trio.core.errors import Code, ShoveyError
from shovey_trio.core.model import LinkMode
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


class ControllerLink:
    """The agent's link. ``serve`` must run; ``wake`` and ``note`` may be called at any time."""

    def __init__(
        self,
        *,
        executor: Executor,
        mode: LinkMode,
        reconnect: ReconnectSection,
        server: str,
        credentials: Callable[[], Credentials],
        new_session: Callable[[str], Session],
    ) -> None:
        self._executor = executor
        self._mode = mode
        self._reconnect = reconnect
        self._server = server
        self._credentials = credentials
        self._new_session = new_session
        self._session: Session | None = None
        self._wish = _Wish(trio.Event())
        self._hang_up: trio.CancelScope | None = None

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

    def reconnect(self, reason: str) -> None:
        """Opens the stream anew, with the credentials of now."""
        if self._hang_up is not None:
            self._hang_up.cancel(reason=reason)
        self.wake("")

    async def serve(self) -> None:
        """Keeps the link until cancelled. No failure of the network or the controller ends it."""
        pause = self._reconnect.delay_min
        self.wake("")  # on demand too, once: so the controller knows this node, and gets what is left in the spool
        while True:
            await self._wait_for_wish()
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
        """One stream, from its opening to its end; how far it came stands in the session."""
        credentials = self._credentials()
        tls = ClientTls(
            ca=credentials.ca_certificates,
            certificate=credentials.certificate_chain,
            private_key=credentials.private_key,
        )
        session = self._new_session(job_id)
        linger = self._reconnect.linger if self._mode is LinkMode.ON_DEMAND else None

        def started() -> None:
            self._session = session
            _log.info("controller.attached", server=self._server, woken_by=job_id)

        try:
            with trio.CancelScope() as self._hang_up:
                async with open_channel(self._server, tls, options=ChannelOptions()) as channel:
                    await session.run(channel, linger=linger, started=started)
            _log.info("controller.detached")
        except* (RpcError, ShoveyError, OSError, trio.BrokenResourceError, trio.TooSlowError) as failures:
            self._note_failure(_first(failures))
        finally:
            self._session = None
            self._hang_up = None
        return session

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
            _log.warning("certificate.renewal_failed", error=str(_first(failures)) or "no answer in time")
            await trio.sleep(retry)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
