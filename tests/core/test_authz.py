"""Who may call what."""

from __future__ import annotations

from shovey_trio.core.jobs.model import Role
from shovey_trio.core.trust import authz
from shovey_trio.core.trust.authz import PERMITTED, Action, may_call
from shovey_trio.v1 import (
    admin_service_pb2,
    agent_service_pb2,
    job_service_pb2,
    key_service_pb2,
    node_service_pb2,
)

_FILES = (admin_service_pb2, agent_service_pb2, job_service_pb2, key_service_pb2, node_service_pb2)
METHODS = {
    f"/{service.full_name}/{method.name}"
    for file in _FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def test_every_method_of_the_contract_has_a_policy_and_no_policy_is_left_over() -> None:
    assert {path for path in authz.METHODS if path.startswith("/shovey_trio.")} == METHODS


def test_what_nobody_wrote_down_is_denied_to_everybody() -> None:
    assert not any(may_call(role, "/shovey_trio.v1.JobService/Explode") for role in Role)


def test_a_public_method_is_no_right_of_any_role() -> None:
    public = [path for path, action in authz.METHODS.items() if action is Action.ANYBODY]
    assert public
    assert not any(may_call(role, path) for path in public for role in Role)


def test_every_action_says_who_may_do_it() -> None:
    assert set(PERMITTED) == set(Action)
    assert [action for action, roles in PERMITTED.items() if not roles] == [Action.ANYBODY]


def test_nodes_call_nothing_but_their_own_service_and_the_keys() -> None:
    allowed = {path.rsplit("/", 1)[1] for path in METHODS if may_call(Role.NODE, path)}
    assert allowed == {"Attach", "PushOutput", "GetSigningKeys"}


def test_viewers_change_nothing() -> None:
    allowed = {path.rsplit("/", 1)[1] for path in METHODS if may_call(Role.VIEWER, path)}
    assert all(name.startswith(("Get", "List", "Watch", "Read", "Explain")) for name in allowed)


def test_only_admins_administer() -> None:
    only_admins = {
        path.rsplit("/", 1)[1] for path, action in authz.METHODS.items() if PERMITTED[action] == {Role.ADMIN}
    }
    assert only_admins == {
        "CreateUserCertificate",
        "ListUsers",
        "RemoveUser",
        "CreateEnrollmentToken",
        "RemoveNode",
    }


def test_operators_may_all_that_viewers_may() -> None:
    for path in METHODS:
        assert may_call(Role.OPERATOR, path) >= may_call(Role.VIEWER, path)
        assert may_call(Role.ADMIN, path) >= may_call(Role.OPERATOR, path)
