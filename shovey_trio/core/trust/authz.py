"""Who may call what. A method without a line here cannot be called: the server refuses to start with one.

Method names are full gRPC paths. ``PUBLIC`` methods carry their own proof (an enrolment token, a signature by the old
key) and are served where no certificate is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from shovey_trio.core.jobs.model import Role

_ADMINS: Final = frozenset({Role.ADMIN})
_OPERATORS: Final = frozenset({Role.ADMIN, Role.OPERATOR})
_USERS: Final = frozenset({Role.ADMIN, Role.OPERATOR, Role.VIEWER})
_NODES: Final = frozenset({Role.NODE})
_EVERYONE: Final = _USERS | _NODES
PUBLIC: Final[frozenset[Role]] = frozenset()

_V1 = "/shovey_trio.v1."
POLICY: Final[Mapping[str, frozenset[Role]]] = MappingProxyType(
    {
        _V1 + "JobService/StartJob": _OPERATORS,
        _V1 + "JobService/GetJob": _USERS,
        _V1 + "JobService/ListJobs": _USERS,
        _V1 + "JobService/CancelJob": _OPERATORS,
        _V1 + "JobService/WatchJob": _USERS,
        _V1 + "JobService/GetRun": _USERS,
        _V1 + "JobService/ListRuns": _USERS,
        _V1 + "JobService/ReadOutput": _USERS,
        _V1 + "JobService/ExplainRun": _USERS,
        _V1 + "NodeService/ListNodes": _USERS,
        _V1 + "NodeService/GetNode": _USERS,
        _V1 + "NodeService/ListNodeStatuses": _USERS,
        _V1 + "NodeService/RemoveNode": _ADMINS,
        _V1 + "AgentService/Enroll": PUBLIC,
        _V1 + "AgentService/Renew": PUBLIC,
        _V1 + "AgentService/Attach": _NODES,
        _V1 + "AgentService/PushOutput": _NODES,
        _V1 + "KeyService/GetSigningKeys": _EVERYONE,
        _V1 + "AdminService/CreateUserCertificate": _ADMINS,
        _V1 + "AdminService/ListUsers": _ADMINS,
        _V1 + "AdminService/RemoveUser": _ADMINS,
        _V1 + "AdminService/CreateEnrollmentToken": _ADMINS,
        _V1 + "AdminService/GetServerInfo": _USERS,
        "/grpc.health.v1.Health/Check": PUBLIC,
        "/grpc.health.v1.Health/Watch": PUBLIC,
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": PUBLIC,
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": PUBLIC,
    }
)


def may_call(role: Role, path: str) -> bool:
    """Whether a principal of this role may call a method that is not public; False for a method nobody wrote down."""
    return role in POLICY.get(path, frozenset())
