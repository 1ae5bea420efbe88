"""The typed client of the control plane: what ``shovey``, the demo, the benchmarks and the tests talk through.

Calls whose repetition does no harm are repeated while the controller is away, streams are resumed where they stopped.
Deadlines are the caller's cancel scope's. Errors are two: ``Unreachable`` when nobody answered, ``RpcError`` for what
the controller itself said.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import Channel, ChannelOptions, ClientTls, Method, RpcError, open_channel
from shovey_trio.rpc.client.paging import Paged
from shovey_trio.rpc.client.retry import RetryPolicy, call_with_retry, unreachable
from shovey_trio.rpc.client.streams import LostContact, ResumingStream
from shovey_trio.v1 import admin_service_pb2 as admin_pb
from shovey_trio.v1 import job_pb2 as job_pb
from shovey_trio.v1 import job_service_pb2 as jobs_pb
from shovey_trio.v1 import key_pb2 as key_pb
from shovey_trio.v1 import key_service_pb2 as keys_pb
from shovey_trio.v1 import node_pb2 as node_pb
from shovey_trio.v1 import node_service_pb2 as nodes_pb

Req = TypeVar("Req", bound=Message)
Res = TypeVar("Res", bound=Message)

JobWatch = ResumingStream[jobs_pb.WatchJobRequest, jobs_pb.WatchJobResponse]
OutputReader = ResumingStream[jobs_pb.ReadOutputRequest, jobs_pb.ReadOutputResponse]


@asynccontextmanager
async def open_client(
    server: str, tls: ClientTls | None, *, server_name: str = "", retry: RetryPolicy | None = None
) -> AsyncIterator[ShoveyClient]:
    """Open a client of the controller at ``server`` (``host:port`` of the control listener) for the block.

    Nothing is sent before the first call; leaving the block cancels what is in progress.

    Args:
        tls: the user's identity; None is plain text, for tests.
        server_name: name the controller's certificate is checked for; empty for the host of ``server``.
    """
    options = ChannelOptions(server_name=server_name or None)
    async with open_channel(server, tls, options=options) as channel:
        yield ShoveyClient(channel, server=server, retry=retry or RetryPolicy())


class ShoveyClient:
    """The RPCs for users, as methods; made by ``open_client``.

    All of them raise ``Unreachable`` and ``RpcError``; only what is particular is repeated below.
    """

    def __init__(self, channel: Channel, *, server: str, retry: RetryPolicy) -> None:
        self._channel = channel
        self._server = server
        self._retry = retry

    # -- jobs

    async def start_job(self, request: jobs_pb.StartJobRequest) -> jobs_pb.StartJobResponse:
        """Start a job, or resolve its targets if ``dry_run`` is set.

        With a ``request_id`` a lost answer is asked for again, and never starts two jobs; without one there is one
        attempt. Cancellation: whether the job starts is unknown; the same request tells.
        """
        if request.request_id or request.dry_run:
            return await self._call(methods.START_JOB, request)
        return await self._call_once(methods.START_JOB, request)

    async def get_job(self, job_id: str) -> job_pb.Job:
        """Return one job."""
        return (await self._call(methods.GET_JOB, jobs_pb.GetJobRequest(job_id=job_id))).job

    def list_jobs(
        self,
        *,
        states: Iterable[job_pb.JobState.ValueType] = (),
        command: str = "",
        created_by: str = "",
        page_size: int = 0,
    ) -> Paged[job_pb.Job]:
        """List jobs, newest first."""

        async def fetch(token: str) -> tuple[Sequence[job_pb.Job], str]:
            request = jobs_pb.ListJobsRequest(
                page_size=page_size, page_token=token, states=states_wanted, command=command, created_by=created_by
            )
            page = await self._call(methods.LIST_JOBS, request)
            return page.jobs, page.next_page_token

        states_wanted = tuple(states)
        return Paged(fetch)

    async def cancel_job(self, job_id: str, nodes: Iterable[str] = ()) -> jobs_pb.CancelJobResponse:
        """Ask for the cancel of all runs or of those of ``nodes``; durable when it returns, proven by watching."""
        return await self._call(methods.CANCEL_JOB, jobs_pb.CancelJobRequest(job_id=job_id, nodes=nodes))

    @asynccontextmanager
    async def watch_job(
        self,
        job_id: str,
        *,
        include_output: bool = False,
        resume_token: str = "",
        on_lost: LostContact | None = None,
    ) -> AsyncIterator[JobWatch]:
        """Watch a job until it is terminal: a snapshot (unless resumed), then every change once, across reconnects.

        A connection lost within a snapshot of several parts begins it again: take runs by their node.
        """
        request = jobs_pb.WatchJobRequest(job_id=job_id, resume_token=resume_token, include_output=include_output)
        watch = self._resuming(methods.WATCH_JOB, request, _advance_watch, on_lost)
        async with aclosing(watch):
            await watch.open()
            yield watch

    async def get_run(self, job_id: str, node: str) -> job_pb.Run:
        """Return one node's run of a job."""
        return (await self._call(methods.GET_RUN, jobs_pb.GetRunRequest(job_id=job_id, node=node))).run

    def list_runs(
        self, job_id: str, *, states: Iterable[job_pb.RunState.ValueType] = (), page_size: int = 1000
    ) -> Paged[job_pb.Run]:
        """List a job's runs by node."""

        async def fetch(token: str) -> tuple[Sequence[job_pb.Run], str]:
            request = jobs_pb.ListRunsRequest(
                job_id=job_id, page_size=page_size, page_token=token, states=states_wanted
            )
            page = await self._call(methods.LIST_RUNS, request)
            return page.runs, page.next_page_token

        states_wanted = tuple(states)
        return Paged(fetch)

    @asynccontextmanager
    async def read_output(
        self,
        job_id: str,
        node: str,
        *,
        stream: job_pb.OutputStream.ValueType = job_pb.OUTPUT_STREAM_UNSPECIFIED,
        offset: int = 0,
        follow: bool = False,
        on_lost: LostContact | None = None,
    ) -> AsyncIterator[OutputReader]:
        """Read a run's output from ``offset`` on; no byte is missed or doubled by a reconnect.

        Args:
            stream: one stream, or both in the order the node read them.
            offset: bytes of that stream, or of both together.
            follow: until the run is terminal, not just until what is durable now.
        """
        request = jobs_pb.ReadOutputRequest(job_id=job_id, node=node, stream=stream, offset=offset, follow=follow)
        reader = self._resuming(methods.READ_OUTPUT, request, _advance_output, on_lost)
        async with aclosing(reader):
            await reader.open()
            yield reader

    # -- nodes

    async def explain_run(self, request: jobs_pb.ExplainRunRequest) -> jobs_pb.ExplainRunResponse:
        """Whether a command would run on a node, and which rule decides."""
        return await self._call(methods.EXPLAIN_RUN, request)

    def list_nodes(
        self,
        *,
        presences: Iterable[node_pb.NodePresence.ValueType] = (),
        match: str = "",
        tags: Mapping[str, str] | None = None,
        page_size: int = 1000,
    ) -> Paged[node_pb.Node]:
        """List registered nodes by name."""

        async def fetch(token: str) -> tuple[Sequence[node_pb.Node], str]:
            request = nodes_pb.ListNodesRequest(
                page_size=page_size, page_token=token, presences=presences_wanted, match=match, tags=tags
            )
            page = await self._call(methods.LIST_NODES, request)
            return page.nodes, page.next_page_token

        presences_wanted = tuple(presences)
        return Paged(fetch)

    async def get_node(self, name: str) -> node_pb.Node:
        """Return one node."""
        return (await self._call(methods.GET_NODE, nodes_pb.GetNodeRequest(name=name))).node

    def list_node_statuses(self, name: str, *, page_size: int = 0) -> Paged[node_pb.NodeStatus]:
        """List the history of a node's presence, newest first."""

        async def fetch(token: str) -> tuple[Sequence[node_pb.NodeStatus], str]:
            request = nodes_pb.ListNodeStatusesRequest(name=name, page_size=page_size, page_token=token)
            page = await self._call(methods.LIST_NODE_STATUSES, request)
            return page.statuses, page.next_page_token

        return Paged(fetch)

    async def remove_node(self, name: str) -> None:
        """Remove a node: its stream is cut, its certificate void. Once, so that NOT_FOUND means what it says."""
        await self._call_once(methods.REMOVE_NODE, nodes_pb.RemoveNodeRequest(name=name))

    # -- keys and administration

    async def get_signing_keys(self) -> key_pb.KeySet:
        """Return the public keys that the organization's orders are signed with."""
        return (await self._call(methods.GET_SIGNING_KEYS, keys_pb.GetSigningKeysRequest())).signing_keys

    async def get_server_info(self) -> admin_pb.GetServerInfoResponse:
        """Return what the server says of itself and of the caller."""
        return await self._call(methods.GET_SERVER_INFO, admin_pb.GetServerInfoRequest())

    def list_users(self, *, page_size: int = 0) -> Paged[admin_pb.User]:
        """List the organization's users."""

        async def fetch(token: str) -> tuple[Sequence[admin_pb.User], str]:
            page = await self._call(
                methods.LIST_USERS, admin_pb.ListUsersRequest(page_size=page_size, page_token=token)
            )
            return page.users, page.next_page_token

        return Paged(fetch)

    async def create_user_certificate(
        self, name: str, *, role: admin_pb.Role.ValueType, csr: bytes
    ) -> admin_pb.CreateUserCertificateResponse:
        """Make a user, or a new certificate for one.

        Args:
            csr: PKCS#10, DER, of an ECDSA P-256 key, which stays with the caller.
        """
        request = admin_pb.CreateUserCertificateRequest(name=name, role=role, csr=csr)
        return await self._call_once(methods.CREATE_USER_CERTIFICATE, request)

    async def remove_user(self, name: str) -> None:
        """Remove a user and void the certificates."""
        await self._call_once(methods.REMOVE_USER, admin_pb.RemoveUserRequest(name=name))

    async def create_enrollment_token(
        self, node: str, *, valid_for: float | None = None
    ) -> admin_pb.CreateEnrollmentTokenResponse:
        """Make a one-time token for ``node``.

        Args:
            valid_for: seconds; the server's default when None.
        """
        request = admin_pb.CreateEnrollmentTokenRequest(node=node)
        if valid_for is not None:
            request.valid_for.CopyFrom(Duration(seconds=round(valid_for)))
        return await self._call_once(methods.CREATE_ENROLLMENT_TOKEN, request)

    # -- how

    async def _call(self, method: Method[Req, Res], request: Req) -> Res:
        return await call_with_retry(self._channel, method, request, policy=self._retry, target=self._server)

    async def _call_once(self, method: Method[Req, Res], request: Req) -> Res:
        try:
            return await self._channel.unary(method, request)
        except RpcError as error:
            raise unreachable(error, self._server) from error

    def _resuming(
        self,
        method: Method[Req, Res],
        request: Req,
        advance: Callable[[Req, Res], None],
        on_lost: LostContact | None,
    ) -> ResumingStream[Req, Res]:
        return ResumingStream(
            self._channel, method, request, advance, policy=self._retry, target=self._server, on_lost=on_lost
        )


def _advance_watch(request: jobs_pb.WatchJobRequest, response: jobs_pb.WatchJobResponse) -> None:
    # Behind a part of a snapshot there is nothing to resume at: only the last part stands for the whole.
    if response.WhichOneof("event") != "snapshot" or response.snapshot.complete:
        request.resume_token = response.resume_token


def _advance_output(request: jobs_pb.ReadOutputRequest, response: jobs_pb.ReadOutputResponse) -> None:
    chunk = response.chunk
    both = request.stream == job_pb.OUTPUT_STREAM_UNSPECIFIED
    request.offset = (chunk.position if both else chunk.stream_offset) + len(chunk.data)
