"""Who may call what, written out by hand: the test's own table, which no code computes.

A line says who is let through; everybody else is refused. Roles are ``admin``, ``operator``, ``viewer`` and ``node``.
``proof`` lines are served where nobody has a certificate yet and carry their own proof; ``open`` ones say nothing that
is anybody's. A route of a server that has no line here fails the test, and so does a line without a route.
"""

from __future__ import annotations

from typing import Final

PROOF: Final = "proof"
OPEN: Final = "open"

#: gRPC methods, by their path without the package.
GRPC: Final[dict[str, str]] = {
    "shovey_trio.v1.JobService/StartJob": "admin operator",
    "shovey_trio.v1.JobService/CancelJob": "admin operator",
    "shovey_trio.v1.JobService/GetJob": "admin operator viewer",
    "shovey_trio.v1.JobService/ListJobs": "admin operator viewer",
    "shovey_trio.v1.JobService/WatchJob": "admin operator viewer",
    "shovey_trio.v1.JobService/GetRun": "admin operator viewer",
    "shovey_trio.v1.JobService/ListRuns": "admin operator viewer",
    "shovey_trio.v1.JobService/ReadOutput": "admin operator viewer",
    "shovey_trio.v1.JobService/ExplainRun": "admin operator viewer",
    "shovey_trio.v1.NodeService/ListNodes": "admin operator viewer",
    "shovey_trio.v1.NodeService/GetNode": "admin operator viewer",
    "shovey_trio.v1.NodeService/ListNodeStatuses": "admin operator viewer",
    "shovey_trio.v1.NodeService/RemoveNode": "admin",
    "shovey_trio.v1.AgentService/Attach": "node",
    "shovey_trio.v1.AgentService/PushOutput": "node",
    "shovey_trio.v1.KeyService/GetSigningKeys": "admin operator viewer node",
    "shovey_trio.v1.AdminService/CreateUserCertificate": "admin",
    "shovey_trio.v1.AdminService/ListUsers": "admin",
    "shovey_trio.v1.AdminService/RemoveUser": "admin",
    "shovey_trio.v1.AdminService/CreateEnrollmentToken": "admin",
    "shovey_trio.v1.AdminService/GetServerInfo": "admin operator viewer",
    "shovey_trio.v1.AgentService/Enroll": PROOF,
    "shovey_trio.v1.AgentService/Renew": PROOF,
    "grpc.health.v1.Health/Check": OPEN,
    "grpc.health.v1.Health/Watch": OPEN,
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": OPEN,
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo": OPEN,
}

#: What the listener for enrolment serves; the other one serves everything that is not ``PROOF``.
ENROLL_LISTENER: Final = frozenset(
    {
        "shovey_trio.v1.AgentService/Enroll",
        "shovey_trio.v1.AgentService/Renew",
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch",
    }
)

#: Routes of the REST shim. ``{job}`` is a job that ran on node-a.
REST: Final[dict[str, str]] = {
    "GET /shovey/jobs": "admin operator",
    "POST /shovey/jobs": "admin operator",
    "PUT /shovey/jobs/cancel": "admin operator",
    "GET /shovey/jobs/{job}": "admin operator",
    "GET /shovey/jobs/{job}/{node}": "admin operator",
    "PUT /shovey/jobs/{job}/{node}": "node",
    "GET /shovey/stream/{job}/{node}": "admin operator",
    "PUT /shovey/stream/{job}/{node}": "node",
    "GET /shovey/output/{job}/{node}": "admin operator",
    "GET /shovey/key": "admin operator viewer node",
    "POST /shovey/key/reset": "admin",
    "GET /status/all/nodes": "admin operator",
    "GET /status/node/{node}/latest": "admin operator",
    "GET /status/node/{node}/all": "admin operator",
    "GET /nodes": "admin operator",
    "GET /search/node": "admin operator",
}

#: Answered to whoever asks, without a signature.
REST_OPEN: Final = frozenset({"/shovey/openapi.json"})
