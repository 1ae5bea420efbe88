"""Group commit: whatever arrives while one commit runs becomes the next one.

The rules of this file:

* One group at a time is in a worker thread; there is no window and no timer. An idle writer commits a write at once.
* There are two lanes. Writes of one lane are applied in the order of the calls, whether or not somebody waits for them.
  Bulk, which is output that nobody reads live, is overtaken by all other writes: megabytes of it are always under way,
  and neither a job's start nor a follower should wait for them. Each commit takes some of both.
* A write has *started* when it is admitted: it will be applied even if its caller is cancelled. Admitted writes are
  bounded by ``ADMITTED_COST``. Behind them a write waits its turn in the line, where it still belongs to its caller: a
  cancelled caller takes it along. So the line's memory is that of waiting tasks, and of ``submit_nowait``, whose
  callers keep to one write per live run and attempt.
* Callers are woken some at a time: each has work to do next, and a thousand of them in one pass of the loop would keep
  everybody else waiting.
* A write nobody waits for is not lost to a passing failure: it is kept, in its place, for the next commit.
* No caller hangs: every call is resolved by a commit, by the failure of one, or by ``aclose``.

All state belongs to the trio thread. The worker thread gets a list and gives back a result.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

import outcome
import structlog
import trio

from shovey_trio.core.errors import StoreCorrupt, StoreUnavailable
from shovey_trio.store.contract import Committed
from shovey_trio.store.sql.committer import CommittedGroup, Outcome, Work
from shovey_trio.store.sql.health import StoreHealth
from shovey_trio.store.sql.transaction import WriteTransaction

_log = structlog.get_logger(__name__)

T = TypeVar("T")

# Bytes a write is charged beside its payload: its values, their rows and its place in the line.
BASE_COST: Final = 2 * 1024
# Bytes of admitted writes: 16,384 small ones. The bound of what cancelled callers can leave behind.
ADMITTED_COST: Final = 32 * 1024 * 1024
# Bytes of admitted writes at which no more bulk is admitted.
BULK_COST: Final = 24 * 1024 * 1024
# Bytes of one group, so that a commit stays in the order of 100 ms; a single larger write goes alone.
GROUP_COST: Final = 8 * 1024 * 1024
# Bytes of bulk in one group. Whatever else arrives meanwhile waits for it to end, and then for its own group, with as
# much bulk again: some 10 ms each. Larger groups hardly make more bytes durable per second (measured: 8 MiB, a tenth).
BULK_GROUP_COST: Final = 1024 * 1024
# Callers that are woken in one pass of the loop; what each does next is some 100 µs.
WAKE_SLICE: Final = 32
# Seconds that closing waits for the writes that are under way.
CLOSE_GRACE: Final = 10.0


class _Call:
    __slots__ = ("awaited", "cost", "done", "lane", "outcome", "work")

    def __init__(self, work: Work, cost: int, lane: _Lane, *, awaited: bool) -> None:
        self.work = work
        self.cost = cost
        self.lane = lane
        self.awaited = awaited
        self.done = trio.Event()
        self.outcome: Outcome | None = None

    def resolve(self, result: Outcome) -> None:
        if self.done.is_set():
            return  # closing has given up on it
        self.outcome = result
        self.done.set()
        if not self.awaited and isinstance(result, outcome.Error):
            _log.warning("store.write_dropped", error=str(result.error), kind=type(result.error).__name__)


class _Lane:
    """Writes that keep their order: those that are admitted, and those behind them.

    Args:
        bound: bytes of admitted writes, of both lanes, at which this one admits no more but its first.
        of_a_group: bytes of it in one group.
    """

    __slots__ = ("admitted", "bound", "line", "of_a_group")

    def __init__(self, bound: int, of_a_group: int) -> None:
        self.bound = bound
        self.of_a_group = of_a_group
        self.admitted: deque[_Call] = deque()
        self.line: OrderedDict[_Call, None] = OrderedDict()

    def clear(self) -> list[_Call]:
        """Everything in it, which it forgets."""
        left = [*self.admitted, *self.line]
        self.admitted.clear()
        self.line.clear()
        return left


class GroupWriter:
    """The only way to write; belongs to the trio thread it was made in."""

    def __init__(
        self,
        commit: Callable[[Sequence[Work]], CommittedGroup],
        health: StoreHealth,
        tell: Callable[[Committed], None] = lambda _: None,
    ) -> None:
        """Args:
        commit: makes a group durable; called in a worker thread.
        health: what became of the last commit.
        tell: called in the trio thread after every commit, before its callers go on; raises nothing.
        """
        self._commit = commit
        self._health = health
        self._tell = tell
        self._token = trio.lowlevel.current_trio_token()
        self._kept: list[_Call] = []
        self._ordinary = _Lane(ADMITTED_COST, GROUP_COST)
        self._bulk = _Lane(BULK_COST, BULK_GROUP_COST)
        self._lanes = (self._ordinary, self._bulk)
        self._admitted_cost = 0
        self._group: list[_Call] = []  # in the worker thread
        self._answers: deque[tuple[_Call, Outcome]] = deque()  # of callers that are still to be woken
        self._closing = False
        self._idle = trio.Event()

    async def submit(self, work: Callable[[WriteTransaction], T], *, payload: int = 0, bulk: bool = False) -> T:
        """Applies a write and returns its result once it is durable.

        Cancellation: a write that has not started (see the module) is withdrawn, any other is finished all the same.

        Args:
            work: the write.
            payload: bytes of data that the write carries.
            bulk: whether others may overtake it.

        Raises:
            StoreUnavailable: nothing of the write was applied, or the store is closing.
            StoreCorrupt: the file is damaged.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        call = self._enter(work, payload, self._bulk if bulk else self._ordinary, awaited=True)
        try:
            await call.done.wait()
        except trio.Cancelled:
            call.lane.line.pop(call, None)
            raise
        assert call.outcome is not None
        result: T = call.outcome.unwrap()
        return result

    def submit_nowait(self, work: Work, *, payload: int = 0) -> None:
        """Applies a write that nobody waits for, in its place among the others; a failure of its own is logged."""
        self._enter(work, payload, self._ordinary, awaited=False)

    async def aclose(self) -> None:
        """Takes no more writes, finishes those under way and fails what is left after ``CLOSE_GRACE``.

        Cancellation: shielded; takes at most ``CLOSE_GRACE``.
        """
        self._closing = True
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_GRACE):
            self._begin(final=True)
            if self._group:
                await self._idle.wait()
            else:
                await trio.lowlevel.checkpoint()
        while self._answers:
            call, own = self._answers.popleft()
            call.resolve(own)
        left = [*self._group, *self._kept, *self._ordinary.clear(), *self._bulk.clear()]
        self._kept = []
        for call in left:
            call.resolve(outcome.Error(StoreUnavailable("the store was closed before this write ended")))

    def _enter(self, work: Work, payload: int, lane: _Lane, *, awaited: bool) -> _Call:
        self._health.check()
        if self._closing:
            raise StoreUnavailable("the store is closing")
        call = _Call(work, BASE_COST + payload, lane, awaited=awaited)
        lane.line[call] = None
        self._admit()
        self._begin()
        return call

    def _admit(self) -> None:
        for lane in self._lanes:
            while lane.line and (not lane.admitted or self._admitted_cost < lane.bound):
                call, _ = lane.line.popitem(last=False)
                lane.admitted.append(call)
                self._admitted_cost += call.cost

    def _begin(self, *, final: bool = False) -> None:
        """Starts the next commit if there is something to commit and none is running."""
        if self._group or not (any(lane.admitted for lane in self._lanes) or (final and self._kept)):
            return
        group, self._kept = self._kept, []
        cost = 0
        for lane in self._lanes:
            taken = False  # the first goes whatever it costs, so that neither lane waits for the other for ever
            room = min(GROUP_COST, cost + lane.of_a_group)
            while lane.admitted and (not taken or cost + lane.admitted[0].cost <= room):
                call = lane.admitted.popleft()
                cost += call.cost
                group.append(call)
                taken = True
        self._admitted_cost -= cost
        self._admit()
        self._group = group
        works = [call.work for call in group]
        deliver = partial(self._deliver, group)
        try:
            trio.lowlevel.start_thread_soon(partial(self._commit, works), deliver, "store writer")
        except RuntimeError as error:
            # The machine is out of threads. As any failure of a commit: callers try again, the rest is kept.
            deliver(outcome.Error(StoreUnavailable(f"no thread to write in: {error}")))

    def _deliver(self, group: list[_Call], result: outcome.Outcome[CommittedGroup]) -> None:
        """Called in the worker thread."""
        try:
            self._token.run_sync_soon(self._finish, group, result)
        except trio.RunFinishedError:
            # Only after a close that gave up: the callers have their answer, and the loop they lived in is gone.
            _log.warning("store.commit_after_close", calls=len(group))

    def _finish(self, group: list[_Call], result: outcome.Outcome[CommittedGroup]) -> None:
        self._group = []
        match result:
            case outcome.Value():
                self._health.failure = ""
                self._tell(result.value.committed)
                self._answers.extend(zip(group, result.value.outcomes, strict=True))
                self._wake_some()
            case outcome.Error():
                self._fail(group, result.error)
        self._begin()
        if not self._group and self._closing:
            self._idle.set()

    def _wake_some(self) -> None:
        for _ in range(min(WAKE_SLICE, len(self._answers))):
            call, own = self._answers.popleft()
            call.resolve(own)
        if self._answers:
            self._token.run_sync_soon(self._wake_some, idempotent=True)

    def _fail(self, group: list[_Call], error: BaseException) -> None:
        _log.error("store.commit_failed", calls=len(group), error=str(error), kind=type(error).__name__)
        if isinstance(error, StoreCorrupt):
            self._health.condemn(error)
            # Final: what waits behind has no better chance.
            group = [*group, *self._ordinary.clear(), *self._bulk.clear()]
            self._admitted_cost = 0
        else:
            self._health.failure = str(error)
        for call in group:
            if isinstance(error, StoreUnavailable) and not call.awaited:
                self._kept.append(call)
            else:
                call.resolve(outcome.Error(_copy(error)))


def _copy(error: BaseException) -> BaseException:
    """One exception object per caller: raised in many tasks, a shared one would gather all their tracebacks."""
    match error:
        case StoreUnavailable() | StoreCorrupt():
            copy = type(error)(error.message, **error.details)
            copy.__cause__ = error.__cause__
            return copy
        case _:
            return error
