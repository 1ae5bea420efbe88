"""Frames on a Unix socket: a length in four bytes, the highest first, then so many bytes.

``FrameDecoder`` is fed bytes as they come, however they are cut, and gives whole frames; ``FrameStream`` does so on a
trio stream. A length beyond the bound ends the conversation before anything of that frame is kept.
"""

from __future__ import annotations

import struct

import trio

from shovey_trio.core.errors import Code, Exit, ShoveyError

_HEADER = struct.Struct("!I")
_READ_BYTES = 64 * 1024
# A peer that takes none of a frame for so long is stuck; a part of a frame cannot be taken back.
_SENDING = 30.0


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
