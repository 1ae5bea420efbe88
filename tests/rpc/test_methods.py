"""The method constants against the contract they are written from."""

from __future__ import annotations

from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import Method, service_methods
from shovey_trio.v1 import (
    admin_service_pb2,
    agent_service_pb2,
    job_service_pb2,
    key_service_pb2,
    node_service_pb2,
)

_FILES = (admin_service_pb2, agent_service_pb2, job_service_pb2, key_service_pb2, node_service_pb2)


def test_every_rpc_of_the_contract_is_here_as_it_is_declared() -> None:
    declared = {
        method.path: method
        for file in _FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service_methods(service).values()
    }
    assert {method.path: method for method in methods.ALL_METHODS} == declared


def test_every_constant_is_listed_once_and_named_after_its_rpc() -> None:
    constants = {name: value for name, value in vars(methods).items() if isinstance(value, Method)}
    assert sorted(constants.values(), key=lambda method: method.path) == sorted(
        methods.ALL_METHODS, key=lambda method: method.path
    )
    for name, method in constants.items():
        assert name.replace("_", "").lower() == method.path.rpartition("/")[2].lower()
