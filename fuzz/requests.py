"""What clients ask: calls of the gRPC services and requests of the REST shim, down to the store and back.

Whatever a request is, it is answered or refused; and whatever it left behind, listings and the job it made can still be
shown afterwards.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, cast

import h11
import trio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from starlette.requests import Request

from fuzz.controller import NODES, Insides, KeptController
from fuzz.framing import PeerStream
from fuzz.golden import records
from fuzz.target import Target
from shovey_trio.chef.auth import SignedCall
from shovey_trio.config.server import ServerSettings
from shovey_trio.core.chef.signing import ChefSignature, SigningVersion
from shovey_trio.core.errors import InvalidRequest, ShoveyError
from shovey_trio.core.jobs.command_input import input_problems
from shovey_trio.core.jobs.model import Principal, Role
from shovey_trio.http.asgi import Receive, Scope, Send
from shovey_trio.http.connection import HttpLimits
from shovey_trio.http.replies import ConnectionCut
from shovey_trio.http.server import HttpOptions, open_http_server
from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import Method, Served
from shovey_trio.rpc.convert import asked_input
from shovey_trio.rpc.services import callers
from shovey_trio.rpc.services.job_service import JobService
from shovey_trio.rpc.services.node_service import NodeService
from shovey_trio.shovey.protocol.report import parse_run_put, parse_stream_put
from shovey_trio.shovey.rest.application import RestApplication
from shovey_trio.shovey.rest.listener import shim_routes
from shovey_trio.store.contract import JobFilter
from shovey_trio.v1 import job_service_pb2, node_service_pb2

_OPERATOR: Final = Principal(organization="default", role=Role.OPERATOR, name="ops")

# --- gRPC -----------------------------------------------------------------------------------------------------

# What is called, in the order of an input's first byte. Streams that stay open and questions to agents are left out:
# their requests are converted by the same code.
_ASKED: Final = (
    methods.START_JOB,
    methods.GET_JOB,
    methods.LIST_JOBS,
    methods.CANCEL_JOB,
    methods.GET_RUN,
    methods.LIST_RUNS,
    methods.READ_OUTPUT,
    methods.WATCH_JOB,
    methods.LIST_NODES,
    methods.GET_NODE,
    methods.LIST_NODE_STATUSES,
)


@asynccontextmanager
async def _no_front(_: Insides) -> AsyncIterator[bool]:
    yield True


_GRPC: Final = KeptController(_no_front)


def _call(data: bytes) -> None:
    if not data:
        return
    method = _ASKED[data[0] % len(_ASKED)]
    request = method.request_type.FromString(data[1:])

    async def work(insides: Insides, _: bool) -> None:
        serves = _routes(insides)
        # What the gatekeeper does once a certificate is believed.
        callers._caller.set(_OPERATOR)
        # What is said of the job that is there is put in, so that a search need not find its id.
        if hasattr(request, "job_id") and request.job_id == "JOB":
            request.job_id = insides.ended.id
        if getattr(request, "follow", False):
            request.follow = False
        await _handled(serves[method.path], method, request)
        await _shown(insides)

    _GRPC.call(work)


async def _handled(served: Served, method: Method[Any, Any], request: Any) -> None:
    if method.server_streaming:
        with trio.move_on_after(_OPEN_STREAM):
            await served.handler(request, PeerStream(iter(())))
    else:
        (await served.handler(request, None)).SerializeToString()


def _routes(insides: Insides) -> Mapping[str, Served]:
    nothing = cast(Any, None)
    jobs, nodes = JobService(insides.rig.jobs, nothing), NodeService(insides.nodes, nothing)
    return {served.method.path: served for served in (*jobs.serves(), *nodes.serves())}


async def _shown(insides: Insides) -> None:
    """The newest job, shown by both protocols."""
    serves = _routes(insides)
    callers._caller.set(_OPERATOR)
    where = JobFilter(organization=_OPERATOR.organization)
    (newest, *_), _ = await insides.rig.jobs.list_jobs(_OPERATOR, where, limit=1, after="")
    await _handled(serves[methods.LIST_JOBS.path], methods.LIST_JOBS, job_service_pb2.ListJobsRequest(page_size=1))
    request = job_service_pb2.ListRunsRequest(job_id=newest.id, page_size=2)
    await _handled(serves[methods.LIST_RUNS.path], methods.LIST_RUNS, request)


def _call_seeds() -> Iterator[bytes]:
    v1 = job_service_pb2
    start = v1.StartJobRequest(
        request_id="1",
        command="hello",
        target=v1.Target(nodes=v1.NodeNames(names=[NODES[0]])),
        quorum="50%",
        run_timeout=Duration(seconds=5),
        kill_grace=Duration(seconds=1),
        args={"name": "value"},
        env={"LANG": "C"},
        stdin=b"in",
        user="root",
    )
    selections = (
        v1.Target(all=True),
        v1.Target(match="web-*"),
        v1.Target(tags=v1.TagSelection(tags={"role": "web"})),
        v1.Target(search="name:web-* AND NOT tags:a"),
    )
    seeds: list[tuple[Method[Any, Any], Any]] = [
        (methods.START_JOB, start),
        *((methods.START_JOB, v1.StartJobRequest(command="x", target=target)) for target in selections),
        (methods.START_JOB, v1.StartJobRequest(command="x", target=selections[0], dry_run=True, quorum="3")),
        (methods.GET_JOB, v1.GetJobRequest(job_id="JOB")),
        (methods.LIST_JOBS, v1.ListJobsRequest(page_size=1, states=[1, 2], command="work", created_by="user/ops")),
        (methods.CANCEL_JOB, v1.CancelJobRequest(job_id="JOB", nodes=[NODES[0]])),
        (methods.GET_RUN, v1.GetRunRequest(job_id="JOB", node=NODES[0])),
        (methods.LIST_RUNS, v1.ListRunsRequest(job_id="JOB", page_size=1, states=[5])),
        (methods.READ_OUTPUT, v1.ReadOutputRequest(job_id="JOB", node=NODES[0], stream=1, offset=3)),
        (methods.WATCH_JOB, v1.WatchJobRequest(job_id="JOB", include_output=True)),
        (methods.WATCH_JOB, v1.WatchJobRequest(job_id="JOB", resume_token=f"{'0' * 36}:1:1")),
        (methods.LIST_NODES, node_service_pb2.ListNodesRequest(page_size=1, match="w*", tags={"a": "b"})),
        (methods.GET_NODE, node_service_pb2.GetNodeRequest(name=NODES[1])),
        (methods.LIST_NODE_STATUSES, node_service_pb2.ListNodeStatusesRequest(name=NODES[1], page_size=1)),
    ]
    for method, request in seeds:
        yield bytes([_ASKED.index(method)]) + request.SerializeToString()


def _question(data: bytes) -> None:
    """The input of a question about a command: bounded before anything is made of it."""
    given = asked_input(job_service_pb2.ExplainRunRequest.FromString(data))
    list(input_problems(given))
    given.record()


def _question_seeds() -> Iterator[bytes]:
    yield job_service_pb2.ExplainRunRequest(
        command="c", node="n", args={"a": "b"}, env={"C": "d"}, stdin_bytes=10
    ).SerializeToString()


# --- REST -----------------------------------------------------------------------------------------------------

_LIMITS: Final = HttpLimits(head_bytes=4096, headers=30, head_time=5, idle_time=5, read_time=5, write_time=5)
_BODY: Final = 8192
_RESET: Final = struct.pack("ii", 1, 0)
_OPEN_STREAM: Final = 2.0


class _Everybody:
    """Believes whoever a request says it is from: what lies behind the signature is reached."""

    def check(self, _: Request) -> None:
        return

    async def authenticate(self, request: Request, body: bytes, organization: str) -> SignedCall:
        await trio.lowlevel.checkpoint()
        user = request.headers.get("x-ops-userid", "ops")
        role = Role.NODE if user.startswith("web-") else Role.ADMIN
        signature = ChefSignature(
            version=SigningVersion.V1_3,
            user=user,
            timestamp="",
            signed_at=0.0,
            content_hash="",
            server_api_version="",
            signature=body[:64],
        )
        return SignedCall(principal=Principal(organization=organization, role=role, name=user), signature=signature)


class _Reports:
    """Takes what old nodes report, as far as reading it."""

    async def run_put(self, _p: Principal, _job: str, _node: str, body: Mapping[str, object]) -> None:
        await trio.lowlevel.checkpoint()
        parse_run_put(body)

    async def stream_put(self, _p: Principal, _job: str, _node: str, body: Mapping[str, object]) -> None:
        await trio.lowlevel.checkpoint()
        parse_stream_put(body)

    def public_key(self, organization: str) -> str:
        return organization

    async def reset_key(self, organization: str, request_id: str) -> str:
        await trio.lowlevel.checkpoint()
        return organization


def _rest(data: bytes) -> None:
    """Bytes of a connection, in pieces; ``JOB`` stands for the id of the job that is there."""
    if not data:
        return

    async def work(insides: Insides, shim: _Shim) -> None:
        sent = data[1:].replace(b"JOB", insides.ended.id.encode())
        answered = await _exchange(shim.port, sent, data[0] * 8 + 1)
        if shim.failures:
            raise shim.failures.pop()
        assert not answered or answered.startswith(b"HTTP/1.1 ")
        await _shown(insides)

    _REST.call(work)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shim:
    """The shim on a socket, and what its handlers let out."""

    port: int
    failures: list[BaseException]


@asynccontextmanager
async def _open_shim(insides: Insides) -> AsyncIterator[_Shim]:
    failures: list[BaseException] = []
    application = RestApplication(
        shim_routes(_settings(), jobs=insides.rig.jobs, nodes=insides.nodes, reports=_Reports()),
        cast(Any, _Everybody()),
        organization="default",
        body_limit=_BODY,
        body_time=_LIMITS.read_time,
    )

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        # The connection answers any failure by 500 and goes on; here it is a find.
        try:
            await application(scope, receive, send)
        except (ShoveyError, h11.RemoteProtocolError, ConnectionCut):
            raise
        except Exception as error:
            failures.append(error)
            raise

    async with open_http_server(handle, address="127.0.0.1:0", options=HttpOptions(limits=_LIMITS)) as server:
        yield _Shim(port=server.port, failures=failures)


async def _exchange(port: int, sent: bytes, piece: int) -> bytes:
    """What a server answers to a client that sends in pieces, closes its side, and reads on."""
    answered = b""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        # Reset at the end: thousands of connections a minute would leave the machine without ports.
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        with suppress(trio.BrokenResourceError):
            for at in range(0, len(sent), piece):
                await stream.send_all(sent[at : at + piece])
            await stream.send_eof()
            while answer := await stream.receive_some():
                answered += answer
    return answered


@cache
def _settings() -> ServerSettings:
    return ServerSettings.model_validate({"rest": {"stream_hold": 0.01, "cancel_wait": 0.01}})


def _rest_seeds() -> Iterator[bytes]:
    job = b"/shovey/jobs/JOB"
    start = json.dumps({"command": "work", "nodes": [NODES[0]], "quorum": "100%", "run_timeout": 5}).encode()
    cancel = json.dumps({"run_id": "JOB", "nodes": [NODES[0]], "kill_timeout": "5"}).encode()
    bodies = {
        "POST /shovey/jobs": start,
        "PUT /shovey/jobs/cancel": cancel,
        f"PUT {job.decode()}/{NODES[0]}": b'{"status":"running","exit_status":0,"error":""}',
        f"PUT /shovey/stream/JOB/{NODES[0]}": b'{"output":"x","output_type":"stdout","is_last":false,"seq":0}',
    }
    for line, body in bodies.items():
        user = NODES[0] if line.startswith("PUT") and "cancel" not in line else "admin"
        head = f"{line} HTTP/1.1\r\nHost: h\r\nX-Ops-Userid: {user}\r\nContent-Length: {len(body)}\r\n\r\n"
        yield b"\xff" + head.encode() + body
        chunked = f"{line} HTTP/1.1\r\nHost: h\r\nX-Ops-Userid: {user}\r\nTransfer-Encoding: chunked\r\n\r\n"
        yield b"\x05" + chunked.encode() + f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    for path in (
        "/shovey/jobs",
        job.decode(),
        f"{job.decode()}/{NODES[0]}",
        f"/shovey/stream/JOB/{NODES[0]}?sequence=1&output_type=both",
        f"/organizations/default/shovey/output/JOB/{NODES[0]}",
        "/status/all/nodes",
        f"/status/node/{NODES[0]}/latest",
        f"/status/node/{NODES[0]}/all",
        "/nodes",
        "/search/node?q=name%3Aweb-*&start=0&rows=5",
        "/shovey/key",
        "//shovey//jobs/%2e%2e/",
    ):
        yield b"\xff" + f"GET {path} HTTP/1.1\r\nHost: h:1\r\nX-Ops-Userid: ops\r\n\r\n".encode()


def _body(data: bytes) -> None:
    """A body alone, read by every reader there is."""
    from shovey_trio.shovey.protocol.requests import read_cancel_request, read_job_request, read_object

    body = read_object(data)
    for read in (read_job_request, read_cancel_request, parse_run_put, parse_stream_put):
        try:
            read(body)
        except ShoveyError as error:
            error.message.encode()


def _body_seeds() -> Iterator[bytes]:
    for record in records("schob-put.jsonl"):
        yield record["request_body"].encode()
    for record in records("http.jsonl"):
        if record["request_body"]:
            yield record["request_body"].encode()[:4096]


_REST: Final = KeptController(_open_shim)

TARGETS: Final = (
    Target(
        name="grpc-calls", decode=_call, seeds=_call_seeds, refusals=(ShoveyError, DecodeError), max_len=2048, short=300
    ),
    Target(name="grpc-question", decode=_question, seeds=_question_seeds, refusals=(DecodeError,)),
    Target(name="rest-requests", decode=_rest, seeds=_rest_seeds, max_len=2048, short=100, per_process=10_000),
    Target(name="rest-bodies", decode=_body, seeds=_body_seeds, refusals=(InvalidRequest,)),
)
