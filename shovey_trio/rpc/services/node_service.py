"""NodeService and KeyService: what is known of nodes, and the keys their orders are signed with."""

from __future__ import annotations

from collections.abc import Sequence

from shovey_trio.application.identities import Identities
from shovey_trio.application.nodes import NodeFilter, Nodes, NodeView
from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import Served, serve_unary
from shovey_trio.rpc.convert import PRESENCES, keys_message, node_message, node_status_message
from shovey_trio.rpc.services.callers import caller
from shovey_trio.rpc.services.paging import decode_name, encode_name, page_size
from shovey_trio.v1 import key_service_pb2, node_pb2
from shovey_trio.v1 import node_service_pb2 as pb


class NodeService:
    """Handlers of NodeService and KeyService."""

    def __init__(self, nodes: Nodes, identities: Identities) -> None:
        self._nodes = nodes
        self._identities = identities

    def serves(self) -> Sequence[Served]:
        return (
            serve_unary(methods.LIST_NODES, self._list),
            serve_unary(methods.GET_NODE, self._get),
            serve_unary(methods.LIST_NODE_STATUSES, self._statuses),
            serve_unary(methods.REMOVE_NODE, self._remove),
            serve_unary(methods.GET_SIGNING_KEYS, self._keys),
        )

    async def _list(self, request: pb.ListNodesRequest, _: object) -> pb.ListNodesResponse:
        where = NodeFilter(
            presences=PRESENCES.members(request.presences),
            match=request.match,
            tags=dict(request.tags),
        )
        views, after = self._nodes.list_nodes(
            caller(), where, limit=page_size(request.page_size), after=decode_name(request.page_token)
        )
        return pb.ListNodesResponse(nodes=[_message(view) for view in views], next_page_token=encode_name(after))

    async def _get(self, request: pb.GetNodeRequest, _: object) -> pb.GetNodeResponse:
        return pb.GetNodeResponse(node=_message(self._nodes.get(caller(), request.name)))

    async def _statuses(self, request: pb.ListNodeStatusesRequest, _: object) -> pb.ListNodeStatusesResponse:
        statuses, token = await self._nodes.statuses(
            caller(), request.name, limit=page_size(request.page_size), after=request.page_token
        )
        return pb.ListNodeStatusesResponse(
            statuses=[node_status_message(status) for status in statuses], next_page_token=token
        )

    async def _remove(self, request: pb.RemoveNodeRequest, _: object) -> pb.RemoveNodeResponse:
        await self._nodes.remove(caller(), request.name)
        await self._identities.load()
        return pb.RemoveNodeResponse()

    async def _keys(
        self, _: key_service_pb2.GetSigningKeysRequest, __: object
    ) -> key_service_pb2.GetSigningKeysResponse:
        keys = self._identities.keys(caller().organization)
        return key_service_pb2.GetSigningKeysResponse(signing_keys=keys_message(keys))


def _message(view: NodeView) -> node_pb2.Node:
    return node_message(view.node, attached=view.attached, serf_status=view.serf_status)
