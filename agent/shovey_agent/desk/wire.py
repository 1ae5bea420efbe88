"""What the two parts of a split agent say to each other: frames, and the desk's values as messages in them.

A frame is a length in four bytes, the highest first, then so many bytes: a message of ``shovey_trio.v1.launcher``.
``FrameDecoder`` is fed bytes as they come, however they are cut, and gives whole frames; ``FrameStream`` does so on a
trio stream. A length beyond the bound ends the conversation before anything of that frame is kept.

What comes from a peer is checked here: a message that does not parse, or has a value that this contract does not know,
is ``DeskProtocolError``.
"""

from __future__ import annotations

import struct
from enum import Enum
from typing import TypeVar

import trio
from google.protobuf.message import DecodeError, Message

from shovey_agent.desk.desk import Declined, Ending, Known, Taken, Verdict, Voided, WhitelistWord
from shovey_agent.run.runs import KnownRun, RunPhase
from shovey_trio.core.errors import Code, Exit, ShoveyError
from shovey_trio.core.jobs.events import RunReport
from shovey_trio.core.trust.orders import RefusalReason
from shovey_trio.rpc.convert import ORDER_KINDS, report_message, report_value, sane_time
from shovey_trio.v1 import agent_service_pb2, launcher_pb2

#: A request is at most an order: 256 KiB of standard input, 64 KiB of words, 16 KiB of secrets, and their names.
MAX_REQUEST: int = 1024 * 1024
#: A reply is at most output: ``MAX_OUTPUT`` bytes in at most ``MAX_CHUNKS`` chunks of some 60 bytes of their own.
MAX_REPLY: int = 1024 * 1024
MAX_OUTPUT: int = 256 * 1024
MAX_CHUNKS: int = 4096

_HEADER = struct.Struct("!I")
_READ_BYTES = 64 * 1024
# A peer that takes none of a frame for so long is stuck; a part of a frame cannot be taken back.
_SENDING = 30.0

_M = TypeVar("_M", bound=Message)
_E = TypeVar("_E", bound=Enum)

_PHASES = {
    RunPhase.ACCEPTED: agent_service_pb2.KNOWN_RUN_STATE_ACCEPTED,
    RunPhase.RUNNING: agent_service_pb2.KNOWN_RUN_STATE_RUNNING,
    RunPhase.FINISHED: agent_service_pb2.KNOWN_RUN_STATE_FINISHED,
}
_PHASE_OF = {number: phase for phase, number in _PHASES.items()}


class FrameTooLarge(ShoveyError):
    """The peer announces more bytes than any message of the protocol has, or none at all."""

    reason, code, http, exit = "FRAME_TOO_LARGE", Code.INVALID_ARGUMENT, 400, Exit.INTERNAL


class FrameDecoder:
    """Cuts a byte stream into frames. Holds at most one frame and what was fed with its end."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = bytearray()

    def feed(self, data: bytes) -> None:
        self._held += data

    def next_frame(self) -> bytes | None:
        """Returns the next whole frame without its length, or None when more has to be fed.

        Raises:
            FrameTooLarge: there will be no further frame.
        """
        if len(self._held) < _HEADER.size:
            return None
        (length,) = _HEADER.unpack_from(self._held)
        if not 0 < length <= self._most:
            raise FrameTooLarge(f"a frame of {length} bytes; at most {self._most} are taken")
        end = _HEADER.size + length
        if len(self._held) < end:
            return None
        frame = bytes(self._held[_HEADER.size : end])
        del self._held[:end]
        return frame


class FrameStream:
    """Sends and receives whole frames. One task may receive while others send."""

    def __init__(self, stream: trio.SocketStream, *, most: int) -> None:
        """``most`` bounds the frames that are received."""
        self._stream = stream
        self._decoder = FrameDecoder(most)
        self._sending = trio.Lock()

    async def receive(self) -> bytes | None:
        """Returns the next frame, or None when the peer has closed. Cancelled, nothing is lost.

        Raises:
            FrameTooLarge: the peer does not keep to the protocol.
            trio.BrokenResourceError, trio.ClosedResourceError: the connection is gone.
        """
        while True:
            frame = self._decoder.next_frame()
            if frame is not None:
                return frame
            data = await self._stream.receive_some(_READ_BYTES)
            if not data:
                return None
            self._decoder.feed(data)

    async def send(self, frame: bytes) -> None:
        """Sends a frame, all of it even if cancelled meanwhile.

        Raises:
            trio.BrokenResourceError: the connection is gone, or the peer takes nothing any more.
            trio.ClosedResourceError: it was closed here.
        """
        async with self._sending:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _SENDING) as sending:
                await self._stream.send_all(_HEADER.pack(len(frame)) + frame)
            if sending.cancelled_caught:
                # What was sent of it cannot be taken back, so nothing can follow.
                self._stream.socket.close()
                raise trio.BrokenResourceError("the peer takes nothing any more")


class DeskProtocolError(ShoveyError):
    """The peer on the socket says what the contract does not know."""

    reason, code, http, exit = "DESK_PROTOCOL_ERROR", Code.INVALID_ARGUMENT, 400, Exit.INTERNAL


def parse(kind: type[_M], frame: bytes) -> _M:
    """The message in a frame.

    Raises:
        DeskProtocolError: it is none.
    """
    message = kind()
    try:
        message.ParseFromString(frame)
    except DecodeError as error:
        raise DeskProtocolError(f"not a {kind.__name__}") from error
    return message


def run_message(run: KnownRun) -> launcher_pb2.SpooledRun:
    return launcher_pb2.SpooledRun(
        run_id=run.run_id,
        job_id=run.job_id,
        command=_text(run.command),
        state=_PHASES[run.phase],
        accepted_at=run.accepted_at,
        started_at=run.started_at,
        cancelling=run.cancelling,
        exit=None if run.exit is None else report_message(run.exit),
        reported=run.reported,
    )


def run_value(message: launcher_pb2.SpooledRun) -> KnownRun:
    """Raises ``DeskProtocolError`` as everything here."""
    phase = _PHASE_OF.get(message.state)
    if phase is None or (phase is RunPhase.FINISHED) != message.HasField("exit"):
        raise DeskProtocolError("a run in no state")
    return KnownRun(
        run_id=message.run_id,
        job_id=message.job_id,
        accepted_at=_time(message.accepted_at),
        command=message.command,
        phase=phase,
        started_at=_time(message.started_at) if message.HasField("started_at") else None,
        cancelling=message.cancelling,
        exit=_exit_value(message.exit) if message.HasField("exit") else None,
        reported=message.reported,
    )


def verdict_message(verdict: Verdict) -> launcher_pb2.OrderVerdict:
    match verdict:
        case Taken(run=run):
            return _verdict(launcher_pb2.ORDER_VERDICT_KIND_TAKEN, run.run_id, run=run_message(run))
        case Known(run=run):
            return _verdict(launcher_pb2.ORDER_VERDICT_KIND_KNOWN, run.run_id, run=run_message(run))
        case Voided(run_id=run_id):
            return _verdict(launcher_pb2.ORDER_VERDICT_KIND_VOIDED, run_id)
        case Ending(run_id=run_id):
            return _verdict(launcher_pb2.ORDER_VERDICT_KIND_ENDING, run_id)
        case Declined():
            refused = _verdict(launcher_pb2.ORDER_VERDICT_KIND_REFUSED, verdict.run_id)
            refused.reason = verdict.reason.value
            refused.detail = _text(verdict.detail)
            if verdict.order_kind is not None:
                refused.order_kind = ORDER_KINDS.number(verdict.order_kind)
            return refused


def verdict_value(message: launcher_pb2.OrderVerdict) -> Verdict:
    match message.kind:
        case launcher_pb2.ORDER_VERDICT_KIND_TAKEN:
            return Taken(run=run_value(message.run))
        case launcher_pb2.ORDER_VERDICT_KIND_KNOWN:
            return Known(run=run_value(message.run))
        case launcher_pb2.ORDER_VERDICT_KIND_VOIDED:
            return Voided(run_id=message.run_id)
        case launcher_pb2.ORDER_VERDICT_KIND_ENDING:
            return Ending(run_id=message.run_id)
        case launcher_pb2.ORDER_VERDICT_KIND_REFUSED:
            return Declined(
                reason=_member(RefusalReason, message.reason),
                detail=message.detail,
                run_id=message.run_id,
                order_kind=ORDER_KINDS.member(message.order_kind),
            )
        case other:
            raise DeskProtocolError(f"a verdict of kind {other}")


def whitelist_message(word: WhitelistWord) -> agent_service_pb2.WhitelistAnswer:
    return agent_service_pb2.WhitelistAnswer(permitted=word.permitted, reason=word.reason, detail=_text(word.detail))


def whitelist_value(message: agent_service_pb2.WhitelistAnswer) -> WhitelistWord:
    return WhitelistWord(permitted=message.permitted, reason=message.reason, detail=message.detail)


def _verdict(
    kind: launcher_pb2.OrderVerdictKind.ValueType, run_id: str, *, run: launcher_pb2.SpooledRun | None = None
) -> launcher_pb2.OrderVerdict:
    return launcher_pb2.OrderVerdict(kind=kind, run_id=run_id, run=run)


def _exit_value(message: agent_service_pb2.RunReport) -> RunReport:
    report = report_value(message)
    if report is None:
        raise DeskProtocolError("a run that ended in no way")
    return report


def _text(text: str) -> str:
    """What a protobuf string can hold: names from a file system may have been no UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _time(at: float) -> float:
    if at != sane_time(at):  # NaN is no time either
        raise DeskProtocolError("a time that is none")
    return at


def _member(kind: type[_E], word: str) -> _E:
    try:
        return kind(word)
    except ValueError:
        raise DeskProtocolError(f"{word[:80]!r} is no {kind.__name__}") from None
