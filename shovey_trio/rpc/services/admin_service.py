"""AdminService: users, enrolment tokens and the server itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shovey_trio.application.identities import Identities
from shovey_trio.application.nodes import Nodes
from shovey_trio.nursery.ports import Doorbell, NurseryClock
from shovey_trio.nursery.supervisor import Supervisor
from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import Served, serve_unary
from shovey_trio.rpc.convert import duration_seconds, role_value, timestamp, user_message
from shovey_trio.rpc.services.callers import caller
from shovey_trio.rpc.services.paging import decode_name, encode_name, page_size
from shovey_trio.v1 import admin_service_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What does not change while the server runs."""

    version: str
    organization: str
    epoch: int
    started_at: float
    enroll_address: str


class AdminService:
    """Handlers of AdminService."""

    def __init__(
        self,
        *,
        facts: ServerFacts,
        identities: Identities,
        nodes: Nodes,
        supervisor: Supervisor,
        doorbell: Doorbell,
        clock: NurseryClock,
    ) -> None:
        self._facts = facts
        self._identities = identities
        self._nodes = nodes
        self._supervisor = supervisor
        self._doorbell = doorbell
        self._clock = clock

    def serves(self) -> Sequence[Served]:
        return (
            serve_unary(methods.CREATE_USER_CERTIFICATE, self._create_user),
            serve_unary(methods.LIST_USERS, self._list_users),
            serve_unary(methods.REMOVE_USER, self._remove_user),
            serve_unary(methods.CREATE_ENROLLMENT_TOKEN, self._create_token),
            serve_unary(methods.GET_SERVER_INFO, self._info),
        )

    async def _create_user(
        self, request: pb.CreateUserCertificateRequest, _: object
    ) -> pb.CreateUserCertificateResponse:
        user, issued = await self._identities.create_user_certificate(
            caller(), name=request.name, role=role_value(request.role), csr=request.csr
        )
        return pb.CreateUserCertificateResponse(user=user_message(user), certificate_chain=issued.chain)

    async def _list_users(self, request: pb.ListUsersRequest, _: object) -> pb.ListUsersResponse:
        after = decode_name(request.page_token)
        users = [user for user in await self._identities.list_users(caller()) if user.name > after]
        limit = page_size(request.page_size)
        more = users[limit - 1].name if len(users) > limit else ""
        return pb.ListUsersResponse(
            users=[user_message(user) for user in users[:limit]], next_page_token=encode_name(more)
        )

    async def _remove_user(self, request: pb.RemoveUserRequest, _: object) -> pb.RemoveUserResponse:
        await self._identities.remove_user(caller(), request.name)
        return pb.RemoveUserResponse()

    async def _create_token(
        self, request: pb.CreateEnrollmentTokenRequest, _: object
    ) -> pb.CreateEnrollmentTokenResponse:
        valid_for = duration_seconds(request.valid_for, field="valid_for") if request.HasField("valid_for") else None
        made = await self._identities.create_enrollment_token(caller(), request.node, valid_for)
        return pb.CreateEnrollmentTokenResponse(
            token=made.token,
            expires_at=timestamp(made.expires_at),
            enroll_address=self._facts.enroll_address,
            ca_certificates=self._identities.ca_certificates,
            root_public_key=self._identities.keys(caller().organization).root_public_key,
        )

    async def _info(self, _: pb.GetServerInfoRequest, __: object) -> pb.GetServerInfoResponse:
        serf = self._doorbell.status()
        principal = caller()
        return pb.GetServerInfoResponse(
            version=self._facts.version,
            organization=principal.organization,
            epoch=self._facts.epoch,
            started_at=timestamp(self._facts.started_at),
            server_time=timestamp(self._clock.now()),
            serf=pb.SerfInfo(
                configured=serf.configured,
                connected=serf.connected,
                since=timestamp(serf.since),
                last_error=serf.last_error,
                members_alive=serf.members_alive,
                query_queue=serf.query_queue,
            ),
            jobs_running=len(self._supervisor),
            nodes_attached=self._nodes.attached_count(),
            unaddressable_nodes=self._nodes.unaddressable(principal),
            caller=principal.label,
            clock_steps=self._clock.frame,
        )
