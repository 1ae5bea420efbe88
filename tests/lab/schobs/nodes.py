"""Emulated old nodes (schob): they take signed orders and report by signed HTTP, but run no commands.

What they send is what a schob sends, byte for byte but for the values (reference recordings in ``tests/golden``): a
keep-alive connection of each node's own, protocol 1.0 signatures, and for a run four PUTs in schob's order – that it
runs, how it ended, then the rest of stderr and of stdout. Each report is sent once.

Every node verifies the signature of every order. What is not as in life: the nodes share a few Chef keys (making a
thousand of them takes a minute and would measure nothing), and their processes are tasks of one process.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import trio
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shovey_trio.core.chef.signing import SigningVersion, sign_request
from shovey_trio.core.jobs.model import StreamName
from shovey_trio.shovey.protocol.report import PutStatus, RunPut, StreamPut, run_put_body, stream_put_body
from shovey_trio.shovey.protocol.wire import Action, parse_order, verify_order

_HOST: Final = "127.0.0.1"
_READ: Final = 65_536
_KEYS: Final = 16
_OK: Final = 200
_ENDS: Final = (
    RunPut(status=PutStatus.FAILED, exit_status=3, error="exit status 3"),
    RunPut(status=PutStatus.SUCCEEDED),
)
_SUCCEEDS: Final = 10
_OUTPUT: Final = b"this is what the node has to say\n"
#: What pushes ``OldNodes.chunks`` pieces of output as fast as it may, once it is told to.
FLOOD: Final = "flood"
_CHUNK: Final = (b"0123456789abcdef" * 3 + b"fifteen chars.\n\n") * 16


@dataclass(frozen=True, slots=True, kw_only=True)
class OldNode:
    """A node's name, key, and how its runs end: every tenth fails."""

    name: str
    key: RSAPrivateKey
    end: RunPut

    @property
    def public_pem(self) -> str:
        return self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def make_nodes(count: int) -> list[OldNode]:
    """So many nodes, with names of 17 characters."""
    keys = [generate_private_key(public_exponent=65_537, key_size=2_048) for _ in range(min(count, _KEYS))]
    return [
        OldNode(name=f"node-{number:05}.legacy", key=keys[number % len(keys)], end=_ENDS[number % _SUCCEEDS != 0])
        for number in range(1, count + 1)
    ]


class OldNodes:
    """The nodes at work, for one server.

    Args:
        nodes: all of them.
        port: where the server takes reports, on 127.0.0.1.
        signing_key: that orders are signed with.
        nursery: where their runs live.
        seconds: how long a command takes.
        chunks: how many pieces ``FLOOD`` pushes.

    Attributes:
        answers: HTTP status of every report (0: the connection broke), and how often.
        forged: orders whose signature did not hold.
        ended: nodes that have sent all they had to, with the time of the last answer.
        ready: ``FLOOD`` runs that have signed what they will push and wait for ``go``.
    """

    def __init__(
        self,
        nodes: Sequence[OldNode],
        *,
        port: int,
        signing_key: RSAPublicKey,
        nursery: trio.Nursery,
        seconds: float = 0.0,
        chunks: int = 0,
    ) -> None:
        self._nodes = {node.name: node for node in nodes}
        self._port = port
        self._signing_key = signing_key
        self._nursery = nursery
        self._seconds = seconds
        self._chunks = chunks
        self.answers: Counter[int] = Counter()
        self.forged = 0
        self.ended: dict[str, float] = {}
        self.ready = 0
        self.pushed = 0
        self.go = trio.Event()

    def deliver(self, name: str, payload: bytes) -> None:
        """Takes an order from serf."""
        node = self._nodes.get(name)
        if node is None:
            return
        order = parse_order(payload)
        if not verify_order(order, self._signing_key):
            self.forged += 1
        elif order.action is Action.START:
            self._nursery.start_soon(self._carry_out, node, order.run_id, order.command)

    async def _carry_out(self, node: OldNode, job_id: str, command: str) -> None:
        reporter = _Reporter(node, job_id, self._port, self.answers)
        try:
            await reporter.say(RunPut(status=PutStatus.RUNNING))
            if command == FLOOD:
                await self._flood(reporter)
            else:
                await trio.sleep(self._seconds)
            await reporter.say(node.end)
            last = StreamPut(stream=StreamName.STDERR, seq=0, is_last=True, data=b"")
            await reporter.send(last)
            seq = self._chunks if command == FLOOD else 0
            await reporter.send(StreamPut(stream=StreamName.STDOUT, seq=seq, is_last=True, data=_OUTPUT))
            self.ended[node.name] = trio.current_time()
            # A Go client keeps its connection for the next time.
            await trio.sleep_forever()
        finally:
            reporter.close()

    async def _flood(self, reporter: _Reporter) -> None:
        requests = []
        for seq in range(self._chunks):
            put = StreamPut(stream=StreamName.STDOUT, seq=seq, is_last=False, data=_CHUNK)
            requests.append(reporter.signed_chunk(put))
            await trio.lowlevel.checkpoint()
        self.ready += 1
        await self.go.wait()
        for request in requests:
            await reporter.put(request)
        self.pushed += 1


class _Reporter:
    """A node's reports of one run, over one connection that is opened again when it breaks."""

    def __init__(self, node: OldNode, job_id: str, port: int, answers: Counter[int]) -> None:
        self._node = node
        self._job_id = job_id
        self._port = port
        self._answers = answers
        self._stream: trio.SocketStream | None = None

    async def say(self, put: RunPut) -> None:
        body = run_put_body(put, node=self._node.name, run_id=self._job_id)
        await self.put(self._signed(f"/shovey/jobs/{self._job_id}/{self._node.name}", body))

    async def send(self, put: StreamPut) -> None:
        await self.put(self.signed_chunk(put))

    def signed_chunk(self, put: StreamPut) -> bytes:
        """The request of a piece of output; to be sent within fifteen minutes."""
        body = stream_put_body(put, node=self._node.name, run_id=self._job_id)
        return self._signed(f"/shovey/stream/{self._job_id}/{self._node.name}", body)

    async def put(self, request: bytes) -> None:
        """Sends a request once, and counts its answer."""
        try:
            if self._stream is None:
                self._stream = await trio.open_tcp_stream(_HOST, self._port)
            await self._stream.send_all(request)
            status = await _read_status(self._stream)
        except (OSError, trio.BrokenResourceError):
            status = 0
            self.close()
        self._answers[status] += 1

    def close(self) -> None:
        """Closes the connection without a word."""
        if self._stream is not None:
            self._stream.socket.close()
            self._stream = None

    def _signed(self, path: str, body: bytes) -> bytes:
        signed = sign_request(
            method="PUT",
            path=path,
            body=body,
            user=self._node.name,
            now=time.time(),
            key=self._node.key,
            version=SigningVersion.V1_0,
        )
        return _request(path, body, signed | {"X-Ops-Sign": "algorithm=sha1;version=1.0"}, self._port)


def _request(path: str, body: bytes, signed: Mapping[str, str], port: int) -> bytes:
    """As Go's client writes it."""
    headers = {
        "Host": f"localhost:{port}",
        "User-Agent": "Go-http-client/1.1",
        "Content-Length": str(len(body)),
        "Accept": "application/json",
        "Content-Type": "application/json",
        "Method": "PUT",
        "X-Chef-Version": "11.12.0",
        **signed,
        "Accept-Encoding": "gzip",
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"PUT {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


async def _read_status(stream: trio.SocketStream) -> int:
    """Reads one answer with a Content-Length, and returns its status.

    Raises:
        BrokenResourceError: the connection ended before.
    """
    data = bytearray()
    while (end := data.find(b"\r\n\r\n")) < 0:
        data += await _receive(stream)
    head = bytes(data[:end]).lower()
    length = head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
    while len(data) < end + 4 + int(length):
        data += await _receive(stream)
    return int(head[9:12])


async def _receive(stream: trio.SocketStream) -> bytes:
    data = await stream.receive_some(_READ)
    if not data:
        raise trio.BrokenResourceError("the server closed the connection")
    return bytes(data)


def lost_results(nodes: Sequence[OldNode], states: Mapping[str, Sequence[str]]) -> int:
    """How many nodes' runs are not in the state that they have reported.

    Args:
        states: status → names, as a job's view has it.
    """
    known = {name: status for status, names in states.items() for name in names}
    return sum(known.get(node.name) != node.end.status.value for node in nodes)


async def wait_ended(nodes: OldNodes, count: int) -> None:
    """Returns when so many nodes have sent all they had to."""
    while len(nodes.ended) < count:  # noqa: ASYNC110 - an event per node would be part of the load
        await trio.sleep(0.01)
