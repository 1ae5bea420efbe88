"""``/shovey/stream`` and ``/shovey/output``: a run's output."""

from __future__ import annotations

from typing import Final

import structlog
import trio
from starlette.responses import Response

from shovey_trio.application.jobs import Jobs
from shovey_trio.core.errors import InvalidRequest, Overloaded
from shovey_trio.core.jobs.model import OutputExtent, Run, StreamName
from shovey_trio.core.trust.authz import Action
from shovey_trio.http.asgi import PiecesResponse, hold
from shovey_trio.http.messages import json_response
from shovey_trio.shovey.protocol.requests import read_object
from shovey_trio.shovey.protocol.sequence import LOOK_AHEAD, Pieces, boundary, pieces, read_sequence
from shovey_trio.shovey.rest.lookups import find_run, reporting_node
from shovey_trio.shovey.rest.output_json import Stretch, read_stretch, with_output
from shovey_trio.shovey.rest.routing import Call, RestRoute
from shovey_trio.shovey.route.reports import SchobReports

_log = structlog.get_logger(__name__)

_STREAMS: Final = {"stdout": StreamName.STDOUT, "stderr": StreamName.STDERR, "both": None}


class StreamRoutes:
    """The handlers.

    Args:
        hold: how long, in seconds, a client that asks from the beginning of a stream that is not complete is kept
            waiting for the end of it. knife's own patience is 300 s.
    """

    def __init__(self, jobs: Jobs, *, reports: SchobReports | None, hold: float) -> None:
        self._jobs = jobs
        self._reports = reports
        self._hold = hold

    def routes(self) -> list[RestRoute]:
        """Their table."""
        stream, output = "/shovey/stream/{job}/{node}", "/shovey/output/{job}/{node}"
        return [
            RestRoute(
                method="GET",
                template=stream,
                action=Action.USE_CHEF_API,
                handle=self.get,
                summary="A run's output, as text",
            ),
            RestRoute(
                method="PUT",
                template=stream,
                action=Action.REPORT_RUNS,
                handle=self.put,
                summary="A piece of a node's output",
            ),
            RestRoute(
                method="GET",
                template=output,
                action=Action.USE_CHEF_API,
                handle=self.raw,
                summary="A run's output, its bytes",
            ),
        ]

    async def get(self, call: Call) -> Response:
        """Output from a sequence number on; a client gets each byte once, whether or not it moves its number on."""
        query = call.query
        kind, stream = _stream(query.get("output_type", "stdout"))
        sequence = read_sequence(query.get("sequence", "0"))
        run, extent = await find_run(self._jobs, call)
        if sequence == 0 and not run.is_terminal and call.request.method == "GET":
            await self._wait_for_the_end(call)
            run, extent = await find_run(self._jobs, call)
        wanted = pieces(sequence, size=_size(extent, stream), complete=run.is_terminal)
        members = {
            # Of a run that is over, whatever its end: a client that waits for this would else wait for ever.
            "is_last": run.is_terminal,
            "node_name": run.node,
            "output_type": kind,
            "run_id": run.job_id,
        }
        if wanted.last_seq is not None:
            members["last_seq"] = wanted.last_seq
        stretch = await self._cut(run, stream, wanted, complete_at=_size(extent, stream))
        return await with_output(self._jobs, run, members, {"output": stretch})

    async def put(self, call: Call) -> Response:
        reports, node = reporting_node(self._reports, call)
        await reports.stream_put(call.principal, call.params["job"], node, read_object(call.body))
        return json_response({"response": "ok"})

    async def raw(self, call: Call) -> Response:
        """The bytes that are there by now, exactly."""
        _, stream = _stream(call.query.get("output_type", "both"))
        run, extent = await find_run(self._jobs, call)
        stretch = Stretch(stream=stream, end=_size(extent, stream))
        return PiecesResponse(
            lambda write: read_stretch(self._jobs, run, stretch, write),
            media_type="application/octet-stream",
            headers={"X-Shovey-Complete": "true" if run.is_terminal else "false"},
        )

    async def _wait_for_the_end(self, call: Call) -> None:
        async def look() -> bool | None:
            run, _ = await find_run(self._jobs, call)
            return True if run.is_terminal else None

        async def end() -> None:
            await self._jobs.until(call.params["job"], look)

        with trio.move_on_after(self._hold):
            try:
                await hold(call.request, end)
            except Overloaded as error:
                # Nobody can be kept waiting now; the client will ask again.
                _log.info("stream.not_held", job=call.params["job"], error=error.message)

    async def _cut(self, run: Run, stream: StreamName | None, wanted: Pieces, *, complete_at: int) -> Stretch:
        """The pieces with their ends at characters."""
        begin, end = wanted.begin, wanted.end
        if 0 < begin < end:
            begin += boundary(await self._window(run, stream, begin))
        if end < complete_at and begin < end:
            end += boundary(await self._window(run, stream, end))
        return Stretch(stream=stream, begin=begin, end=end)

    async def _window(self, run: Run, stream: StreamName | None, at: int) -> bytes:
        chunks = await self._jobs.read_page(run, stream=stream, offset=at, limit=LOOK_AHEAD)
        return b"".join(chunk.data for chunk in chunks)[:LOOK_AHEAD]


def _stream(kind: str) -> tuple[str, StreamName | None]:
    if kind not in _STREAMS:
        raise InvalidRequest("output type must be 'stdout', 'stderr', or 'both'", field="output_type")
    return kind, _STREAMS[kind]


def _size(extent: OutputExtent, stream: StreamName | None) -> int:
    match stream:
        case None:
            return extent.position
        case StreamName.STDOUT:
            return extent.stdout_bytes
        case StreamName.STDERR:
            return extent.stderr_bytes
