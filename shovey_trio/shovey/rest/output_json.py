"""Output inside JSON, of any size: read from the store and written to the client piece by piece.

JSON has no bytes. Output that is UTF-8 is its text; what is not is U+FFFD in the text, and then the exact bytes follow
in a member of the same name with ``_base64`` behind it.
"""

from __future__ import annotations

import base64
import codecs
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.responses import Response

from shovey_trio.application.jobs import Jobs
from shovey_trio.core.jobs.model import Run, StreamName
from shovey_trio.http.asgi import PiecesResponse
from shovey_trio.http.messages import JSON

# An answer with less output than this is collected and sent with its length; most are.
_WHOLE: Final = 64 * 1024
# Bytes read from the store at a time.
_PAGE: Final = 256 * 1024
_DECODER: Final = codecs.getincrementaldecoder("utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A part of a run's output: bytes ``begin`` to ``end`` of one stream, or of both in the order of reading."""

    stream: StreamName | None
    begin: int = 0
    end: int

    @property
    def size(self) -> int:
        return max(0, self.end - self.begin)


async def with_output(jobs: Jobs, run: Run, members: Mapping[str, Any], output: Mapping[str, Stretch]) -> Response:
    """A JSON object of ``members`` and of output.

    Cancellation, or an error while the store is read, cuts a large answer off in the middle; it never looks whole.
    """
    if sum(stretch.size for stretch in output.values()) <= _WHOLE:
        collected = bytearray()

        async def collect(data: bytes) -> None:  # noqa: ASYNC124 - the other writer awaits
            collected.extend(data)

        await _write(collect, jobs, run, members, output)
        return Response(bytes(collected), media_type=JSON)
    return PiecesResponse(lambda write: _write(write, jobs, run, members, output), media_type=JSON)


async def read_stretch(jobs: Jobs, run: Run, stretch: Stretch, write: Callable[[bytes], Awaitable[None]]) -> None:
    """Writes exactly these bytes, less what the node dropped."""
    begin = stretch.begin
    while begin < stretch.end:
        chunks = await jobs.read_page(run, stream=stretch.stream, offset=begin, limit=min(_PAGE, stretch.end - begin))
        for chunk in chunks:
            start = chunk.position if stretch.stream is None else chunk.stream_offset
            data = chunk.data[: max(0, stretch.end - start)]
            if data:
                await write(data)
            begin = start + len(chunk.data)
        if not chunks:
            return


async def _write(
    write: Callable[[bytes], Awaitable[None]],
    jobs: Jobs,
    run: Run,
    members: Mapping[str, Any],
    output: Mapping[str, Stretch],
) -> None:
    head = json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    await write(head.removesuffix("}").encode("utf-8"))
    for name, stretch in output.items():
        text = _Text(write)
        await write(f',"{name}":"'.encode())
        await read_stretch(jobs, run, stretch, text.feed)
        await text.end()
        await write(b'"')
        if text.is_lossy:
            exact = _Base64(write)
            await write(f',"{name}_base64":"'.encode())
            await read_stretch(jobs, run, stretch, exact.feed)
            await exact.end()
            await write(b'"')
    await write(b"}\n")


class _Text:
    """Bytes as the inside of a JSON string; exact until the first that is no UTF-8."""

    def __init__(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        self._write = write
        self._decoder = _DECODER("strict")
        self.is_lossy = False

    async def feed(self, data: bytes) -> None:
        await self._put(data, final=False)

    async def end(self) -> None:
        await self._put(b"", final=True)

    async def _put(self, data: bytes, *, final: bool) -> None:
        pending, _ = self._decoder.getstate()
        try:
            text = self._decoder.decode(data, final)
        except UnicodeDecodeError:
            self.is_lossy = True
            self._decoder = _DECODER("replace")
            text = self._decoder.decode(pending + data, final)
        if text:
            await self._write(json.dumps(text, ensure_ascii=False)[1:-1].encode("utf-8"))


class _Base64:
    """Bytes as base64, in multiples of three but for the last."""

    def __init__(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        self._write = write
        self._rest = b""

    async def feed(self, data: bytes) -> None:
        data = self._rest + data
        whole = len(data) - len(data) % 3
        self._rest = data[whole:]
        await self._write(base64.b64encode(data[:whole]))

    async def end(self) -> None:
        await self._write(base64.b64encode(self._rest))
