"""The OpenAPI document against the shim: schemathesis makes requests from it and judges the answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests
import schemathesis
import trio
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from shovey_trio.config.server import ServerSettings
from shovey_trio.core.chef.signing import sign_request
from shovey_trio.shovey.rest.listener import shim_routes
from shovey_trio.shovey.rest.openapi import PATH, openapi_document

from .conftest import key_of, open_shim

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def _nothing() -> Any:
    """For handlers that are not called."""
    return None


DOCUMENT = openapi_document(shim_routes(ServerSettings(), jobs=_nothing(), nodes=_nothing(), reports=None))
schema = schemathesis.openapi.from_dict(DOCUMENT)


@dataclass(frozen=True)
class Signed(requests.auth.AuthBase):
    """Signs what requests has prepared, path as on the wire."""

    user: str

    def __call__(self, prepared: requests.PreparedRequest) -> requests.PreparedRequest:
        import time

        body = prepared.body or b""
        prepared.headers.update(
            sign_request(
                method=prepared.method or "GET",
                path=prepared.path_url,
                body=body.encode() if isinstance(body, str) else body,
                user=self.user,
                now=time.time(),
                key=key_of(self.user),
                server_api_version="1",
            )
        )
        return prepared


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A shim in a thread of its own: schemathesis and requests are not asynchronous."""
    opened = threading.Event()
    found: list[Any] = []

    async def serve() -> None:
        async with open_shim(stream_hold=0, cancel_wait=0.1, limit=100) as shim:
            job_id = await shim.settled("web-1")
            stop = trio.Event()
            found.extend([f"http://127.0.0.1:{shim.server.port}", job_id, trio.lowlevel.current_trio_token(), stop])
            opened.set()
            await stop.wait()

    thread = threading.Thread(target=trio.run, args=(serve,), daemon=True)
    thread.start()
    assert opened.wait(20)
    yield found[0]
    found[2].run_sync_soon(found[3].set)
    thread.join(20)
    assert not thread.is_alive()


@schema.parametrize()
@settings(max_examples=6, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_shim_does_what_its_document_says(case: Any, address: str) -> None:
    for user in ("admin", "web-1"):
        response = case.call(base_url=address, auth=Signed(user), timeout=20)
        case.validate_response(response, checks=CHECKS)


def test_document_is_served_to_everybody(address: str) -> None:
    answer = requests.get(address + PATH, timeout=20)
    assert answer.json() == DOCUMENT
