"""Nodes and the history of their presence: reads of a snapshot, writes of a write transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, bindparam, insert, select, update

from shovey_trio.core.jobs.model import Node, NodeStatus, Presence
from shovey_trio.store.sql.pages import Listing, decode_key, encode_page
from shovey_trio.store.sql.prepared import Prepared
from shovey_trio.store.sql.rows import NODE, NODE_STATUS
from shovey_trio.store.sql.tabled import load_values, remove_row
from shovey_trio.store.sql.tables import node_statuses, nodes
from shovey_trio.store.sql.transaction import WriteTransaction

# A fleet that attaches at once writes two of these for each agent.
_UPDATE_NODE: Final = Prepared(
    update(nodes)
    .where(nodes.c.organization == bindparam("node_organization"), nodes.c.name == bindparam("node_name"))
    .values({name: bindparam(name) for name in NODE.changing})
    .returning(nodes.c.name)
)
_INSERT_NODE: Final = Prepared(insert(nodes))
_INSERT_STATUS: Final = Prepared(
    insert(node_statuses).values({column.name: bindparam(column.name) for column in NODE_STATUS.columns})
)


def write_node(transaction: WriteTransaction, node: Node, status: NodeStatus | None, only_known: bool) -> None:
    """See ``Store.write_node``."""
    connection, values = transaction.connection, NODE.changes(node)
    known = _UPDATE_NODE.find(connection, node_organization=node.organization, node_name=node.name, **values)
    if known is None:
        if only_known:
            return
        _INSERT_NODE.execute(connection, [{**NODE.fixed(node), **values}])
        if status is None and node.presence is Presence.NEW:
            status = NodeStatus(
                node=node.name,
                organization=node.organization,
                presence=node.presence,
                since=node.presence_since,
                reason=node.presence_reason,
            )
    if status is not None:
        _INSERT_STATUS.execute(connection, [NODE_STATUS.fixed(status)])


def remove_node(transaction: WriteTransaction, organization: str, name: str) -> bool:
    """Removes a node. Its presence history stays until retention takes it: it is the record of what was."""
    return remove_row(transaction, nodes, {"organization": organization, "name": name})


def load_nodes(connection: Connection) -> Sequence[Node]:
    return load_values(connection, NODE)


def list_node_statuses(
    connection: Connection, organization: str, name: str, *, limit: int, after: str
) -> tuple[Sequence[NodeStatus], str]:
    """See ``Store.list_node_statuses``."""
    listing = statuses_listing(organization, name)
    query = select(*NODE_STATUS.columns, node_statuses.c.status_pk).where(
        node_statuses.c.organization == organization, node_statuses.c.node == name
    )
    if after:
        query = query.where(node_statuses.c.status_pk < decode_key(listing, after))
    rows = connection.execute(query.order_by(node_statuses.c.status_pk.desc()).limit(limit + 1)).all()
    shown = rows[:limit]
    return (
        tuple(NODE_STATUS.decode(row) for row in shown),
        encode_page(listing, str(shown[-1].status_pk)) if len(rows) > limit else "",
    )


def statuses_listing(organization: str, name: str) -> Listing:
    """What a page token of ``list_node_statuses`` is bound to."""
    return ("statuses", organization, name)
