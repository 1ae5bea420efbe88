"""Who may do what: one table for every door.

A gRPC method and an HTTP route name an ``Action``; ``PERMITTED`` says which roles may do it. What is not named cannot
be called: the controller refuses to start with a method or a route without an action.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from shovey_trio.core.jobs.model import Principal, Role


class Action(StrEnum):
    """What a caller wants; the word is what audit records and refusals name."""

    START_JOBS = "start jobs"
    CANCEL_JOBS = "cancel jobs"
    READ_JOBS = "read jobs"
    READ_NODES = "read nodes"
    REMOVE_NODES = "remove nodes"
    READ_KEYS = "read keys"
    REPLACE_KEYS = "replace keys"
    MANAGE_USERS = "manage users"
    ADMIT_NODES = "admit nodes"
    READ_SERVER = "read the server's state"
    # What Chef's clients could always do as admins only, reading included: their servers knew no viewers.
    USE_CHEF_API = "use Chef's interface"
    REPORT_RUNS = "report runs"
    # Carries its own proof (an enrolment token, a signature by the old key), or says nothing that is anybody's.
    ANYBODY = "anybody"


_ADMINS: Final = frozenset({Role.ADMIN})
_OPERATORS: Final = frozenset({Role.ADMIN, Role.OPERATOR})
_USERS: Final = frozenset({Role.ADMIN, Role.OPERATOR, Role.VIEWER})
_NODES: Final = frozenset({Role.NODE})
_NOBODY: Final[frozenset[Role]] = frozenset()

PERMITTED: Final[Mapping[Action, frozenset[Role]]] = MappingProxyType(
    {
        Action.START_JOBS: _OPERATORS,
        Action.CANCEL_JOBS: _OPERATORS,
        Action.READ_JOBS: _USERS,
        Action.READ_NODES: _USERS,
        Action.REMOVE_NODES: _ADMINS,
        Action.READ_KEYS: _USERS | _NODES,
        Action.REPLACE_KEYS: _ADMINS,
        Action.MANAGE_USERS: _ADMINS,
        Action.ADMIT_NODES: _ADMINS,
        Action.READ_SERVER: _USERS,
        Action.USE_CHEF_API: _OPERATORS,
        Action.REPORT_RUNS: _NODES,
        # No role is asked for, so none is enough where one is.
        Action.ANYBODY: _NOBODY,
    }
)

_V1 = "/shovey_trio.v1."
#: Full gRPC paths.
METHODS: Final[Mapping[str, Action]] = MappingProxyType(
    {
        _V1 + "JobService/StartJob": Action.START_JOBS,
        _V1 + "JobService/GetJob": Action.READ_JOBS,
        _V1 + "JobService/ListJobs": Action.READ_JOBS,
        _V1 + "JobService/CancelJob": Action.CANCEL_JOBS,
        _V1 + "JobService/WatchJob": Action.READ_JOBS,
        _V1 + "JobService/GetRun": Action.READ_JOBS,
        _V1 + "JobService/ListRuns": Action.READ_JOBS,
        _V1 + "JobService/ReadOutput": Action.READ_JOBS,
        _V1 + "JobService/ExplainRun": Action.READ_JOBS,
        _V1 + "NodeService/ListNodes": Action.READ_NODES,
        _V1 + "NodeService/GetNode": Action.READ_NODES,
        _V1 + "NodeService/ListNodeStatuses": Action.READ_NODES,
        _V1 + "NodeService/RemoveNode": Action.REMOVE_NODES,
        _V1 + "AgentService/Enroll": Action.ANYBODY,
        _V1 + "AgentService/Renew": Action.ANYBODY,
        _V1 + "AgentService/Attach": Action.REPORT_RUNS,
        _V1 + "AgentService/PushOutput": Action.REPORT_RUNS,
        _V1 + "KeyService/GetSigningKeys": Action.READ_KEYS,
        _V1 + "AdminService/CreateUserCertificate": Action.MANAGE_USERS,
        _V1 + "AdminService/ListUsers": Action.MANAGE_USERS,
        _V1 + "AdminService/RemoveUser": Action.MANAGE_USERS,
        _V1 + "AdminService/CreateEnrollmentToken": Action.ADMIT_NODES,
        _V1 + "AdminService/GetServerInfo": Action.READ_SERVER,
        "/grpc.health.v1.Health/Check": Action.ANYBODY,
        "/grpc.health.v1.Health/Watch": Action.ANYBODY,
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Action.ANYBODY,
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": Action.ANYBODY,
    }
)


def may(role: Role, action: Action) -> bool:
    """Whether a principal of this role may do this."""
    return role in PERMITTED[action]


def refusal(principal: Principal, path: str) -> str:
    """Why a principal may not call a gRPC method, and what would help."""
    said = f"{principal.label} ({principal.role.value}) may not call {path.rpartition('/')[2]}"
    # In the order of ``Role``, which is that of what they may: the last is the least that is enough.
    enough = [role.value for role in Role if role is not Role.NODE and may_call(role, path)]
    if principal.role is Role.NODE or not enough:
        return said
    return (
        f"{said}, which takes the role {' or '.join(enough)}; an admin can give it: "
        f"shovey-trio user cert {principal.name} --role {enough[-1]}"
    )


def may_call(role: Role, path: str) -> bool:
    """Whether a principal of this role may call a gRPC method that is not for anybody; False for an unknown one."""
    return path in METHODS and may(role, METHODS[path])
