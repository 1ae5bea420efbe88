"""``/status``, ``/nodes`` and ``/search``: nodes, as knife's node status and search read them."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from shovey_trio.application.nodes import NodeFilter, Nodes, NodeView
from shovey_trio.core.errors import InvalidRequest, NotFound
from shovey_trio.core.jobs.model import Principal
from shovey_trio.core.jobs.search import parse_search, unescape_query
from shovey_trio.core.trust.authz import Action
from shovey_trio.http.messages import json_response
from shovey_trio.shovey.protocol.views import node_view, status_view
from shovey_trio.shovey.rest.routing import Call, RestRoute

# Rows of one answer; knife asks for this many and reads no further page.
_ROWS: Final = 1_000
# Entries of a node's history in one answer, the newest.
_STATUSES: Final = 1_000
_EVERYTHING: Final = NodeFilter()
_NO_LIMIT: Final = 2**31


class NodeRoutes:
    """The handlers."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes

    def routes(self) -> list[RestRoute]:
        """Their table."""
        node = "/status/node/{node}"
        return [
            RestRoute(
                method="GET",
                template="/status/all/nodes",
                action=Action.USE_CHEF_API,
                handle=self.all_statuses,
                summary="Status of all nodes",
            ),
            RestRoute(
                method="GET",
                template=f"{node}/latest",
                action=Action.USE_CHEF_API,
                handle=self.latest,
                summary="A node's status",
            ),
            RestRoute(
                method="GET",
                template=f"{node}/all",
                action=Action.USE_CHEF_API,
                handle=self.history,
                summary="A node's history",
            ),
            RestRoute(
                method="GET",
                template="/nodes",
                action=Action.USE_CHEF_API,
                handle=self.list_nodes,
                summary="URLs of all nodes",
            ),
            RestRoute(
                method="GET",
                template="/search/node",
                action=Action.USE_CHEF_API,
                handle=self.search,
                summary="Search nodes",
            ),
        ]

    async def all_statuses(self, call: Call) -> Response:
        views = [
            node_view(view.node, url=call.url(f"/status/node/{view.node.name}/latest"))
            for view in self._all(call.principal)
        ]
        return json_response(views)

    async def latest(self, call: Call) -> Response:
        return json_response(node_view(self._find(call).node))

    async def history(self, call: Call) -> Response:
        """The newest first, at most a thousand."""
        self._find(call)
        statuses, _ = await self._nodes.statuses(call.principal, call.params["node"], limit=_STATUSES, after="")
        return json_response([status_view(status) for status in statuses])

    async def list_nodes(self, call: Call) -> Response:
        names = [view.node.name for view in self._all(call.principal)]
        return json_response({name: call.url(f"/nodes/{name}") for name in names})

    async def search(self, call: Call) -> Response:
        """Rows of names; what is not supported is 400, never an empty answer."""
        query = call.query
        start, rows = _number(query, "start", 0), min(_number(query, "rows", _ROWS), _ROWS)
        holds = parse_search(unescape_query(query.get("q") or "*:*"))
        found = [view.node.name for view in self._all(call.principal) if holds(view.node)]
        page = [{"name": name} for name in found[start : start + rows]]
        return json_response({"rows": page, "start": start, "total": len(found)})

    def _all(self, principal: Principal) -> list[NodeView]:
        views, _ = self._nodes.list_nodes(principal, _EVERYTHING, limit=_NO_LIMIT, after="")
        return list(views)

    def _find(self, call: Call) -> NodeView:
        name = call.params["node"]
        try:
            return self._nodes.get(call.principal, name)
        except NotFound:
            raise NotFound(f"node '{name}' not found", node=name) from None


def _number(query: dict[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise InvalidRequest(f"{name} {text!r} is not a number", field=name)
    return int(text)
