"""The desk in this process: gate, executor and spool behind one door. Implements ``desk.OrderDesk``.

Used by an agent that is one process, and by the launcher, which serves it to a network part (``desk_server``).
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
import trio

from shovey_agent.desk.desk import Declined, Ending, Known, NewsListener, Taken, Verdict, Voided, WhitelistWord
from shovey_agent.desk.epoch import JobEpochs
from shovey_agent.desk.gate import VOID_LIFETIME, OrderGate, Refusal
from shovey_agent.desk.nonces import open_nonces
from shovey_agent.desk.refusals import RefusalLog
from shovey_agent.desk.whitelist_file import WhitelistFile
from shovey_agent.run.executor import Executor, ExecutorConfig, open_executor
from shovey_agent.run.runs import Accepted, Duplicate, KnownRun, OutputGrown, RunPhase, Started
from shovey_agent.run.runs import Refused as NotTaken
from shovey_trio.core.jobs.command_input import CommandInput
from shovey_trio.core.jobs.model import OutputChunk
from shovey_trio.core.trust.order_signing import OrderKeys
from shovey_trio.core.trust.orders import NodeIdentity, Order, OrderKind, RefusalReason, SignedOrder

_log = structlog.get_logger(__name__)

# How long the disk may take for an order (its nonce, its spool) before this agent gives it up.
_TAKING = 60.0
# How often a running command's output is looked at: while somebody reads it live, and otherwise.
_FOLLOWED = 0.1
_UNFOLLOWED = 1.0
# Orders that live longer are refused: a node whose nonce file is damaged refuses every order for this long.
_LONGEST_ORDER = 7200.0


class LocalDesk:
    """The desk in this process. Use ``open_local_desk``."""

    def __init__(self, executor: Executor, gate: OrderGate) -> None:
        self._executor = executor
        self._gate = gate
        # A cancel must not overtake the start of the same run between its checks and its spool.
        self._taking = trio.Lock()
        self._refusals = RefusalLog()

    def known_runs(self) -> tuple[KnownRun, ...]:
        return self._executor.known_runs()

    def known_run(self, run_id: str) -> KnownRun | None:
        return self._executor.known_run(run_id)

    async def wait_ready(self) -> None:
        await trio.lowlevel.checkpoint()

    async def take(self, signed: SignedOrder, *, controller_now: float) -> Verdict:
        # Whoever asked may go away at any moment, between using the nonce up and having the run in the spool too: that
        # would leave an order that can never be taken again.
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _TAKING) as taking:
            async with self._taking:
                verdict = await self._take(signed, controller_now)
            if isinstance(verdict, Declined):
                self._refusals.note(verdict.reason.value, detail=verdict.detail, run_id=verdict.run_id)
            return verdict
        assert taking.cancelled_caught
        _log.error("order.given_up", seconds=_TAKING)
        raise OSError(errno.ETIMEDOUT, "the disk takes too long for an order")

    async def ask(self, command: str, given: CommandInput) -> WhitelistWord:
        cleared = await self._gate.clear(command, given)
        if isinstance(cleared, Refusal):
            return WhitelistWord(permitted=False, reason=cleared.reason.value, detail=cleared.detail)
        detail = f"it would run {cleared.permit.argv[0]} as {cleared.account_name}"
        return WhitelistWord(permitted=True, detail=detail)

    async def read_output(self, run_id: str, position: int, limit: int) -> tuple[OutputChunk, ...]:
        return await self._executor.read_output(run_id, position, limit)

    async def follow(self, run_id: str, *, followed: bool) -> None:
        self._executor.set_poll_interval(run_id, _FOLLOWED if followed else _UNFOLLOWED)
        await trio.lowlevel.checkpoint()

    async def confirm(self, run_id: str) -> bool:
        known = self._executor.known_run(run_id)
        if known is None or known.phase is not RunPhase.FINISHED:
            await trio.lowlevel.checkpoint()
            return False
        try:
            await self._executor.mark_reported(run_id)
        except OSError as error:
            # On a full disk: clearing the run is what makes room. Without the mark it is reported again at worst.
            _log.warning("run.not_marked", run_id=run_id, error=str(error))
        return await self._executor.forget(run_id)

    async def learn_keys(self, signed_key_set: bytes) -> None:
        """Nothing to do: in one process the gate goes by the same keys as everybody."""
        await trio.lowlevel.checkpoint()

    async def serve(self, listener: NewsListener) -> None:
        async for event in self._executor.events:
            match event:
                case OutputGrown(run_id=run_id):
                    listener.note(run_id, output=True)
                case Started(run_id=run_id):
                    listener.note(run_id)
                case _:
                    listener.note(event.report.run_id)

    async def _take(self, signed: SignedOrder, controller_now: float) -> Verdict:
        order = self._gate.believe(signed, controller_now=controller_now)
        if isinstance(order, Refusal):
            return _declined(order)
        known = self._executor.known_run(order.run_id)
        if order.kind is OrderKind.CANCEL:
            return await self._cancel(order, known, controller_now)
        if known is not None:
            return Known(run=known)
        return await self._start(order, signed, controller_now)

    async def _start(self, order: Order, signed: SignedOrder, controller_now: float) -> Verdict:
        try:
            spec = await self._gate.admit(order, signed, controller_now=controller_now)
        except OSError as error:
            spec = Refusal(reason=RefusalReason.SPOOL_FULL, detail=str(error), order=order)
        if isinstance(spec, Refusal):
            return _declined(spec)
        match await self._executor.start(spec):
            case Accepted(run=run):
                _log.info("run.accepted", run_id=run.run_id, job_id=run.job_id, command=order.command)
                return Taken(run=run)
            case Duplicate(run=run):
                return Known(run=run)
            case NotTaken(reason=reason, detail=detail):
                word = _NOT_TAKEN.get(reason.value, RefusalReason.SPAWN_FAILED)
                return Declined(reason=word, detail=detail, run_id=order.run_id, order_kind=order.kind)

    async def _cancel(self, order: Order, known: KnownRun | None, controller_now: float) -> Verdict:
        if known is None:
            await self._gate.void(order, controller_now=controller_now)
            _log.info("run.voided", run_id=order.run_id)
            return Voided(run_id=order.run_id)
        if known.phase is RunPhase.FINISHED:
            return Known(run=known)
        _log.info("run.cancelling", run_id=order.run_id)
        await self._executor.cancel(order.run_id, grace=order.kill_grace)
        return Ending(run_id=order.run_id)


@asynccontextmanager
async def open_local_desk(
    config: ExecutorConfig, *, identity: NodeIdentity, keys: OrderKeys, whitelist: WhitelistFile
) -> AsyncIterator[LocalDesk]:
    """The desk of a state directory, with all its runs adopted. At the end the commands go on.

    Args:
        config: where runs are kept, and their bounds; nonces and void runs lie beside them.
        identity: whose orders are taken.
        keys: which keys may sign them.
        whitelist: what may run.

    Raises:
        OSError: the state directory is not one to work with.
    """
    directory = config.state_dir
    async with open_executor(config) as executor:
        await executor.adopt()
        gate = OrderGate(
            identity=identity,
            keys=keys,
            nonces=await open_nonces(directory / "nonces", longest_life=_LONGEST_ORDER),
            voided=await open_nonces(
                directory / "voided", longest_life=_LONGEST_ORDER + VOID_LIFETIME, keeps_floor=False
            ),
            epochs=JobEpochs((run.job_id, run.epoch) for run in executor.known_runs()),
            whitelist=whitelist,
        )
        yield LocalDesk(executor, gate)


def _declined(refusal: Refusal) -> Declined:
    order = refusal.order
    return Declined(
        reason=refusal.reason,
        detail=refusal.detail,
        run_id=order.run_id if order else "",
        order_kind=order.kind if order else None,
    )


_NOT_TAKEN = {
    "busy": RefusalReason.BUSY,
    "spool_full": RefusalReason.SPOOL_FULL,
    "spool_error": RefusalReason.SPOOL_FULL,
    "invalid_spec": RefusalReason.MALFORMED,
}
