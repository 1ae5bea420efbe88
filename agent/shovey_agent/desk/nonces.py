"""Which orders were seen before: the memory behind "at most once" (design.md section 7).

A nonce is remembered until its order has expired. What is forgotten then is covered by a *floor*, the latest expiry
that was ever forgotten: an order that expires at or before it is refused, whatever the clock says, so that setting the
clock back brings no old order to life.

There is a floor for each frame of the controller's time, which a nonce names (``core.trust.orders.frame_of``). So what
a controller with a wrong clock had forgotten does not bind it when its clock is right: its nonces are of another frame
then. Every nonce is of one frame and its order has one expiry, so no order escapes its floor.

The file is one line per nonce, ``<expires_at> <hex>``, behind lines ``floor <time> <frame in hex, or ->`` and a first
line ``floor <time>`` for whatever frame. Lines are appended and synced before an order is admitted. A last line without
its end was never synced, so its order was never admitted.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path

import structlog
import trio

from shovey_agent.supervisor.spool_files import sync_directory, write_all, write_file
from shovey_trio.core.trust.orders import frame_of
from shovey_trio.observe import failpoints
from shovey_trio.observe.threads import run_in_thread

_log = structlog.get_logger()

# The file is written anew when this many nonces can be forgotten: about 60 KiB of lines.
_PRUNE_AT = 1024
# Frames with a floor of their own: starts of the controller whose orders were forgotten here. Of more, the lowest
# floors become one for all: they are the longest past, and a clock that was ahead has left the highest.
_FRAMES = 64


class NonceVerdict(StrEnum):
    """What the nonces say of an order."""

    FRESH = "fresh"
    REPLAYED = "replayed"
    BELOW_FLOOR = "below_floor"
    TOO_FAR_AHEAD = "too_far_ahead"


@dataclass(slots=True, kw_only=True)
class NonceLedger:
    """The decision, without the file.

    Attributes:
        floor: no order of any frame that expires at or before it is admitted.
        floors: the same, by frame.
        used: expiry by nonce.
        keeps_floor: whether what was forgotten may not be admitted again.
    """

    floor: float = -math.inf
    floors: dict[bytes, float] = field(default_factory=dict)
    used: dict[bytes, float] = field(default_factory=dict)
    keeps_floor: bool = True

    def judge(self, nonce: bytes, *, expires_at: float, now: float, longest_life: float) -> NonceVerdict:
        """Says what to do with an order; changes nothing."""
        if nonce in self.used:
            return NonceVerdict.REPLAYED
        if not expires_at > max(self.floor, self.floors.get(frame_of(nonce), -math.inf)):  # NaN is below everything
            return NonceVerdict.BELOW_FLOOR
        if expires_at > now + longest_life:
            return NonceVerdict.TOO_FAR_AHEAD
        return NonceVerdict.FRESH

    def prune(self, now: float) -> None:
        """Forgets what has expired, and raises the floors by it."""
        for nonce, expiry in [(nonce, expiry) for nonce, expiry in self.used.items() if expiry <= now]:
            del self.used[nonce]
            if self.keeps_floor:
                frame = frame_of(nonce)
                self.floors[frame] = max(self.floors.get(frame, -math.inf), expiry)
        while len(self.floors) > _FRAMES:
            lowest = min(self.floors, key=self.floors.__getitem__)
            self.floor = max(self.floor, self.floors.pop(lowest))


class NonceFile:
    """The ledger and its file. Use ``open_nonces``."""

    def __init__(self, path: Path, ledger: NonceLedger, *, longest_life: float) -> None:
        self._path = path
        self._ledger = ledger
        self._longest_life = longest_life
        self._lock = trio.Lock()
        self._prune_at = _PRUNE_AT

    def holds(self, nonce: bytes) -> bool:
        """Whether this nonce was used and is not forgotten yet."""
        return nonce in self._ledger.used

    async def admit(self, nonce: bytes, *, expires_at: float, now: float) -> NonceVerdict:
        """Judges an order by its nonce, and remembers a fresh one durably before it says so.

        Cancelled, the nonce may be used up: the order will be a replay when it comes again.

        Args:
            nonce: of any length; compared as a whole.
            expires_at: of the order, by the clock that made it.
            now: by that same clock.

        Raises:
            OSError: it could not be made durable. The order must not run.
        """
        async with self._lock:
            verdict = self._ledger.judge(nonce, expires_at=expires_at, now=now, longest_life=self._longest_life)
            if verdict is NonceVerdict.FRESH:
                # Remembered even if the disk fails half-way: used up is the safe side.
                self._ledger.used[nonce] = expires_at
                await run_in_thread(partial(self._append, nonce, expires_at))
                if len(self._ledger.used) >= self._prune_at:
                    self._ledger.prune(now)
                    await run_in_thread(partial(_rewrite, self._path, self._ledger))
                    # Nothing much could be forgotten: try again when there is twice as much.
                    self._prune_at = max(_PRUNE_AT, 2 * len(self._ledger.used))
            return verdict

    def _append(self, nonce: bytes, expires_at: float) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            try:
                failpoints.passing("nonces.append.before")
                write_all(descriptor, _line(nonce, expires_at))
                failpoints.passing("nonces.append.written")
                os.fsync(descriptor)
                failpoints.passing("nonces.append.after")
            except OSError:
                # Half a line would swallow the beginning of the next one.
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)


async def open_nonces(path: Path, *, longest_life: float = 86_400.0, keeps_floor: bool = True) -> NonceFile:
    """Opens the file, or makes it. Nothing is forgotten then: what has expired is said by the controller's clock alone.

    A damaged file does not stop the agent. What it may have held is covered by the floor: no order that could have been
    admitted before the file's last change is admitted now.

    Args:
        path: of the file.
        longest_life: an order that expires later than this after ``now`` is refused; it bounds what is remembered, and
            for how long a damaged file makes the node refuse.
        keeps_floor: see ``NonceLedger``.

    Raises:
        OSError: it can be neither read nor made.
    """
    ledger = await run_in_thread(partial(_load, path, longest_life))
    ledger.keeps_floor = keeps_floor
    return NonceFile(path, ledger, longest_life=longest_life)


def _load(path: Path, longest_life: float) -> NonceLedger:
    try:
        text = path.read_bytes()
        modified = path.stat().st_mtime
    except FileNotFoundError:
        ledger = NonceLedger()
    else:
        ledger, damaged = parse_nonces(text)
        if damaged:
            ledger.floor = max(ledger.floor, modified + longest_life)
            _log.error("nonces.damaged", path=str(path), floor=ledger.floor)
    try:
        _rewrite(path, ledger)
    except OSError as error:
        # An agent on a full disk must still come up: its runs wait to be adopted, and reporting them frees space.
        if not path.exists():
            raise
        _log.warning("nonces.not_rewritten", path=str(path), error=str(error))
        _cut_unfinished_line(path)
    return ledger


def parse_nonces(text: bytes) -> tuple[NonceLedger, bool]:
    """Reads the file's text; returns the ledger and whether something in it could not be read."""
    ledger = NonceLedger()
    *lines, _unfinished = text.split(b"\n")
    damaged = bool(text) and not text.startswith(b"floor ")
    for line in lines:
        first, _, second = line.partition(b" ")
        try:
            if first == b"floor":
                _read_floor(ledger, second)
            else:
                ledger.used[bytes.fromhex(second.decode("ascii"))] = float(first)
        except ValueError:
            damaged = True
    return ledger, damaged


def _read_floor(ledger: NonceLedger, text: bytes) -> None:
    time, _, frame = text.partition(b" ")
    floor = float(time)
    if math.isnan(floor):
        raise ValueError(text)
    if not frame:
        ledger.floor = max(ledger.floor, floor)
    else:
        ledger.floors[b"" if frame == b"-" else bytes.fromhex(frame.decode("ascii"))] = floor


def _cut_unfinished_line(path: Path) -> None:
    """Leaves whole lines alone in the file: half of one would swallow the beginning of the next."""
    text = path.read_bytes()
    os.truncate(path, text.rfind(b"\n") + 1)


def _line(nonce: bytes, expires_at: float) -> bytes:
    return f"{expires_at!r} {nonce.hex()}\n".encode("ascii")


def written(ledger: NonceLedger) -> Iterator[bytes]:
    """The lines of the file, as ``parse_nonces`` reads them."""
    yield f"floor {ledger.floor!r}\n".encode("ascii")
    for frame, floor in ledger.floors.items():
        yield f"floor {floor!r} {frame.hex() or '-'}\n".encode("ascii")
    for nonce, expires_at in ledger.used.items():
        yield _line(nonce, expires_at)


def _rewrite(path: Path, ledger: NonceLedger) -> None:
    temporary = path.with_name(path.name + ".new")
    write_file(str(temporary), b"".join(written(ledger)), durable=True)
    temporary.replace(path)
    sync_directory(str(path.parent))
