"""Every RPC of the contract as a typed ``Method``: what clients call, and what services are tied to.

A test compares them with the descriptors of ``proto/shovey_trio/v1``, so that none is missing or of another shape.
"""

from __future__ import annotations

from typing import Any, Final

from shovey_trio.rpc.bridge import Method
from shovey_trio.v1 import admin_service_pb2, agent_service_pb2, job_service_pb2, key_service_pb2, node_service_pb2

# --- JobService

START_JOB: Final = Method(
    path="/shovey_trio.v1.JobService/StartJob",
    request_type=job_service_pb2.StartJobRequest,
    response_type=job_service_pb2.StartJobResponse,
)
GET_JOB: Final = Method(
    path="/shovey_trio.v1.JobService/GetJob",
    request_type=job_service_pb2.GetJobRequest,
    response_type=job_service_pb2.GetJobResponse,
)
LIST_JOBS: Final = Method(
    path="/shovey_trio.v1.JobService/ListJobs",
    request_type=job_service_pb2.ListJobsRequest,
    response_type=job_service_pb2.ListJobsResponse,
)
CANCEL_JOB: Final = Method(
    path="/shovey_trio.v1.JobService/CancelJob",
    request_type=job_service_pb2.CancelJobRequest,
    response_type=job_service_pb2.CancelJobResponse,
)
WATCH_JOB: Final = Method(
    path="/shovey_trio.v1.JobService/WatchJob",
    request_type=job_service_pb2.WatchJobRequest,
    response_type=job_service_pb2.WatchJobResponse,
    server_streaming=True,
)
GET_RUN: Final = Method(
    path="/shovey_trio.v1.JobService/GetRun",
    request_type=job_service_pb2.GetRunRequest,
    response_type=job_service_pb2.GetRunResponse,
)
LIST_RUNS: Final = Method(
    path="/shovey_trio.v1.JobService/ListRuns",
    request_type=job_service_pb2.ListRunsRequest,
    response_type=job_service_pb2.ListRunsResponse,
)
READ_OUTPUT: Final = Method(
    path="/shovey_trio.v1.JobService/ReadOutput",
    request_type=job_service_pb2.ReadOutputRequest,
    response_type=job_service_pb2.ReadOutputResponse,
    server_streaming=True,
)

EXPLAIN_RUN: Final = Method(
    path="/shovey_trio.v1.JobService/ExplainRun",
    request_type=job_service_pb2.ExplainRunRequest,
    response_type=job_service_pb2.ExplainRunResponse,
)

# --- NodeService

LIST_NODES: Final = Method(
    path="/shovey_trio.v1.NodeService/ListNodes",
    request_type=node_service_pb2.ListNodesRequest,
    response_type=node_service_pb2.ListNodesResponse,
)
GET_NODE: Final = Method(
    path="/shovey_trio.v1.NodeService/GetNode",
    request_type=node_service_pb2.GetNodeRequest,
    response_type=node_service_pb2.GetNodeResponse,
)
LIST_NODE_STATUSES: Final = Method(
    path="/shovey_trio.v1.NodeService/ListNodeStatuses",
    request_type=node_service_pb2.ListNodeStatusesRequest,
    response_type=node_service_pb2.ListNodeStatusesResponse,
)
REMOVE_NODE: Final = Method(
    path="/shovey_trio.v1.NodeService/RemoveNode",
    request_type=node_service_pb2.RemoveNodeRequest,
    response_type=node_service_pb2.RemoveNodeResponse,
)

# --- AgentService

ENROLL: Final = Method(
    path="/shovey_trio.v1.AgentService/Enroll",
    request_type=agent_service_pb2.EnrollRequest,
    response_type=agent_service_pb2.EnrollResponse,
)
RENEW: Final = Method(
    path="/shovey_trio.v1.AgentService/Renew",
    request_type=agent_service_pb2.RenewRequest,
    response_type=agent_service_pb2.RenewResponse,
)
ATTACH: Final = Method(
    path="/shovey_trio.v1.AgentService/Attach",
    request_type=agent_service_pb2.AttachRequest,
    response_type=agent_service_pb2.AttachResponse,
    client_streaming=True,
    server_streaming=True,
)
PUSH_OUTPUT: Final = Method(
    path="/shovey_trio.v1.AgentService/PushOutput",
    request_type=agent_service_pb2.PushOutputRequest,
    response_type=agent_service_pb2.PushOutputResponse,
    client_streaming=True,
    server_streaming=True,
)

# --- KeyService

GET_SIGNING_KEYS: Final = Method(
    path="/shovey_trio.v1.KeyService/GetSigningKeys",
    request_type=key_service_pb2.GetSigningKeysRequest,
    response_type=key_service_pb2.GetSigningKeysResponse,
)

# --- AdminService

CREATE_USER_CERTIFICATE: Final = Method(
    path="/shovey_trio.v1.AdminService/CreateUserCertificate",
    request_type=admin_service_pb2.CreateUserCertificateRequest,
    response_type=admin_service_pb2.CreateUserCertificateResponse,
)
LIST_USERS: Final = Method(
    path="/shovey_trio.v1.AdminService/ListUsers",
    request_type=admin_service_pb2.ListUsersRequest,
    response_type=admin_service_pb2.ListUsersResponse,
)
REMOVE_USER: Final = Method(
    path="/shovey_trio.v1.AdminService/RemoveUser",
    request_type=admin_service_pb2.RemoveUserRequest,
    response_type=admin_service_pb2.RemoveUserResponse,
)
CREATE_ENROLLMENT_TOKEN: Final = Method(
    path="/shovey_trio.v1.AdminService/CreateEnrollmentToken",
    request_type=admin_service_pb2.CreateEnrollmentTokenRequest,
    response_type=admin_service_pb2.CreateEnrollmentTokenResponse,
)
GET_SERVER_INFO: Final = Method(
    path="/shovey_trio.v1.AdminService/GetServerInfo",
    request_type=admin_service_pb2.GetServerInfoRequest,
    response_type=admin_service_pb2.GetServerInfoResponse,
)

ALL_METHODS: Final[tuple[Method[Any, Any], ...]] = (
    START_JOB,
    GET_JOB,
    LIST_JOBS,
    CANCEL_JOB,
    WATCH_JOB,
    GET_RUN,
    LIST_RUNS,
    READ_OUTPUT,
    EXPLAIN_RUN,
    LIST_NODES,
    GET_NODE,
    LIST_NODE_STATUSES,
    REMOVE_NODE,
    ENROLL,
    RENEW,
    ATTACH,
    PUSH_OUTPUT,
    GET_SIGNING_KEYS,
    CREATE_USER_CERTIFICATE,
    LIST_USERS,
    REMOVE_USER,
    CREATE_ENROLLMENT_TOKEN,
    GET_SERVER_INFO,
)
