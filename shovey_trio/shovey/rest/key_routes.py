"""``/shovey/key``: the public key that old nodes verify their orders with."""

from __future__ import annotations

from starlette.responses import Response

from shovey_trio.core.errors import NotFound
from shovey_trio.core.trust.authz import Action
from shovey_trio.http.messages import json_response
from shovey_trio.shovey.rest.routing import Call, RestRoute
from shovey_trio.shovey.route.reports import SchobReports


class KeyRoutes:
    """The handlers."""

    def __init__(self, reports: SchobReports | None) -> None:
        self._reports = reports

    def routes(self) -> list[RestRoute]:
        """Their table."""
        key = "/shovey/key"
        return [
            RestRoute(
                method="GET", template=key, action=Action.READ_KEYS, handle=self.get, summary="Public key of orders"
            ),
            RestRoute(
                method="POST",
                template=f"{key}/reset",
                action=Action.REPLACE_KEYS,
                handle=self.reset,
                summary="Make a new key",
            ),
        ]

    async def get(self, call: Call) -> Response:
        pem = self._known().public_key(call.principal.organization)
        return json_response({"public_key": pem})

    async def reset(self, call: Call) -> Response:
        """Makes a key once for a request; whoever repeats it is told the key of today."""
        pem = await self._known().reset_key(call.principal.organization, call.request_id)
        return json_response({"public_key": pem})

    def _known(self) -> SchobReports:
        if self._reports is None:
            raise NotFound("this controller has no key for old nodes")
        return self._reports
