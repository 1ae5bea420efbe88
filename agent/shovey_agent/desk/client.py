"""The network part's side of the socket: the desk in the launcher's process. Implements ``OrderDesk``.

The launcher tells all its runs first and then every change, so this side has them at hand. When the launcher is away
(it is being restarted, say), the runs go on without either; whoever waits for an answer gets ``LauncherAway``, the
stream to the controller is given up, and once the launcher is back all begins with its runs as they are then.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import structlog
import trio

from shovey_agent.desk.desk import NewsListener, Verdict, WhitelistWord
from shovey_agent.desk.wire import (
    MAX_REPLY,
    DeskProtocolError,
    FrameStream,
    FrameTooLarge,
    parse,
    run_value,
    verdict_value,
    whitelist_value,
)
from shovey_agent.run.runs import KnownRun, RunPhase
from shovey_trio.core.errors import first_leaf
from shovey_trio.core.jobs.command_input import CommandInput
from shovey_trio.core.jobs.model import OutputChunk
from shovey_trio.core.trust.orders import NodeIdentity, SignedOrder
from shovey_trio.rpc.convert import chunk_value, signed_order_message
from shovey_trio.v1 import agent_service_pb2
from shovey_trio.v1 import launcher_pb2 as pb

_log = structlog.get_logger(__name__)

_AGAIN = 0.2
_AGAIN_AT_MOST = 5.0
_ORDER = {RunPhase.ACCEPTED: 0, RunPhase.RUNNING: 1, RunPhase.FINISHED: 2}


class LauncherAway(ConnectionError):
    """The launcher cannot be asked now. What was asked may have been done."""

    reason: ClassVar[str] = "LAUNCHER_AWAY"


class RemoteDesk:
    """A launcher's desk. ``serve`` must run.

    Args:
        path: of the launcher's socket.
        identity: whose orders it must be taking.
    """

    def __init__(self, path: Path, identity: NodeIdentity) -> None:
        self._path = path
        self._identity = identity
        self._runs: dict[str, KnownRun] = {}
        self._frames: FrameStream | None = None
        self._ready = trio.Event()
        self._met = False
        self._waiting: dict[int, _Question] = {}
        self._next_id = 1

    def known_runs(self) -> tuple[KnownRun, ...]:
        return tuple(self._runs.values())

    def known_run(self, run_id: str) -> KnownRun | None:
        return self._runs.get(run_id)

    async def wait_ready(self) -> None:
        await trio.lowlevel.checkpoint()
        # Looked at again without a pause: the launcher may have gone between the event and whoever waited for it.
        while self._frames is None:
            await self._ready.wait()

    async def take(self, signed: SignedOrder, *, controller_now: float) -> Verdict:
        take = pb.TakeOrder(order=signed_order_message(signed), controller_time=controller_now)
        answer = await self._ask(pb.LauncherRequest(take_order=take), "verdict")
        verdict = verdict_value(answer.verdict)
        if answer.verdict.HasField("run"):
            self._learn_run(run_value(answer.verdict.run))
        return verdict

    async def ask(self, command: str, given: CommandInput) -> WhitelistWord:
        asked = agent_service_pb2.AskWhitelist(
            command=command, args=given.args, env=given.env, user=given.user, stdin_bytes=len(given.stdin)
        )
        answer = await self._ask(pb.LauncherRequest(ask_whitelist=asked), "whitelist")
        return whitelist_value(answer.whitelist)

    async def read_output(self, run_id: str, position: int, limit: int) -> tuple[OutputChunk, ...]:
        if limit <= 0:
            await trio.lowlevel.checkpoint()
            return ()
        read = pb.ReadSpool(run_id=run_id, position=position, limit=limit)
        answer = await self._ask(pb.LauncherRequest(read_spool=read), "output")
        chunks = tuple(map(chunk_value, answer.output.chunks))
        if None in chunks:
            raise DeskProtocolError("a piece of output from nowhere")
        return tuple(chunk for chunk in chunks if chunk is not None)

    async def follow(self, run_id: str, *, followed: bool) -> None:
        follow = pb.FollowSpool(run_id=run_id, followed=followed)
        await self._ask(pb.LauncherRequest(follow_spool=follow), "done")

    async def confirm(self, run_id: str) -> bool:
        answer = await self._ask(pb.LauncherRequest(confirm_run=pb.ConfirmRun(run_id=run_id)), "done")
        if answer.done.changed:
            self._runs.pop(run_id, None)
        return answer.done.changed

    async def learn_keys(self, signed_key_set: bytes) -> None:
        learn = pb.LearnKeys(signed_key_set=signed_key_set)
        await self._ask(pb.LauncherRequest(learn_keys=learn), "done")

    async def serve(self, listener: NewsListener) -> None:
        """Keeps the connection to the launcher, and tells of its runs; no failure of the launcher ends it."""
        pause = _AGAIN
        while True:
            try:
                async with await trio.open_unix_socket(str(self._path)) as stream:
                    await self._converse(FrameStream(stream, most=MAX_REPLY), listener)
                error = "it has closed the connection"
            except* (DeskProtocolError, FrameTooLarge, OSError, trio.BrokenResourceError) as errors:
                error = str(first_leaf(errors))
            if self._met:
                self._met = False
                pause = _AGAIN
            _log.warning("launcher.away", socket=str(self._path), error=error)
            await trio.sleep(pause)
            pause = min(2 * pause, _AGAIN_AT_MOST)

    async def _converse(self, frames: FrameStream, listener: NewsListener) -> None:
        """One connection, from its beginning to its end."""
        runs: dict[str, KnownRun] = {}
        while True:
            reply = await _receive(frames)
            if reply is None:
                return
            if reply.WhichOneof("reply") == "ready":
                break
            run = run_value(reply.news.run)
            runs[run.run_id] = run
        self._check(reply.ready)
        self._runs = runs
        self._frames = frames
        _log.info("launcher.ready", runs=len(runs), key_set_serial=reply.ready.key_set_serial)
        self._met = True
        self._ready.set()
        try:
            while (reply := await _receive(frames)) is not None:
                self._take_reply(reply, listener)
        finally:
            self._frames = None
            self._ready = trio.Event()
            listener.hang_up("the launcher is away")
            for question in self._waiting.values():
                question.answered.set()
            self._waiting.clear()

    def _check(self, ready: pb.LauncherReady) -> None:
        said = NodeIdentity(organization=ready.organization, node=ready.node, agent_instance=ready.agent_instance)
        if said != self._identity:
            raise DeskProtocolError(
                f"it takes orders for {said.organization}:{said.node}, instance {said.agent_instance}, and these"
                f" credentials are {self._identity.organization}:{self._identity.node}'s,"
                f" instance {self._identity.agent_instance}: start the launcher again after enrolling"
            )

    def _take_reply(self, reply: pb.LauncherReply, listener: NewsListener) -> None:
        match reply.WhichOneof("reply"):
            case "news":
                if reply.news.output_grown:
                    listener.note(reply.news.run_id, output=True)
                else:
                    run = run_value(reply.news.run)
                    self._learn_run(run)
                    listener.note(run.run_id)
            case "answer":
                question = self._waiting.pop(reply.answer.id, None)
                if question is not None:  # else whoever asked was cancelled
                    question.answer = reply.answer
                    question.answered.set()
            case other:
                raise DeskProtocolError(f"{other} in the middle of a conversation")

    def _learn_run(self, run: KnownRun) -> None:
        """Keeps the furthest that was heard of a run: a verdict and the news of a run may cross."""
        known = self._runs.get(run.run_id)
        if known is None or _ORDER[run.phase] >= _ORDER[known.phase]:
            self._runs[run.run_id] = run

    async def _ask(self, request: pb.LauncherRequest, kind: str) -> pb.LauncherAnswer:
        """Asks and waits for the answer.

        Raises:
            LauncherAway: there will be none.
            OSError: the launcher's disk failed.
            DeskProtocolError: it is an answer to something else.
        """
        frames = self._frames
        if frames is None:
            await trio.lowlevel.checkpoint()
            raise LauncherAway("the launcher is away")
        request.id = self._next_id
        self._next_id = self._next_id % 0xFFFF_FFFF + 1
        question = self._waiting[request.id] = _Question()
        try:
            await frames.send(request.SerializeToString())
            await question.answered.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise LauncherAway("the launcher is away") from error
        finally:
            self._waiting.pop(request.id, None)
        answer = question.answer
        if answer is None:
            raise LauncherAway("the launcher is away")
        if answer.HasField("failure"):
            raise OSError(f"the launcher: {answer.failure.message}")
        if answer.WhichOneof("answer") != kind:
            raise DeskProtocolError(f"an answer without {kind}")
        return answer


class _Question:
    """What was asked and is not answered yet; set without an answer, there will be none."""

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.answer: pb.LauncherAnswer | None = None


async def _receive(frames: FrameStream) -> pb.LauncherReply | None:
    frame = await frames.receive()
    return None if frame is None else parse(pb.LauncherReply, frame)
