"""Nodes, users, certificates and enrolment tokens: reads of a snapshot, writes of a write transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, bindparam, insert, select, update

from shovey_trio.core.jobs.model import Grant, Node, NodeStatus, User
from shovey_trio.store.sql.pages import Listing, decode_key, encode_page
from shovey_trio.store.sql.prepared import Prepared
from shovey_trio.store.sql.rows import GRANT, NODE, NODE_STATUS, USER
from shovey_trio.store.sql.tabled import load_values, put_row, remove_row, remove_value, store_value
from shovey_trio.store.sql.tables import (
    REVOKED,
    certificates,
    counters,
    enrollment_tokens,
    grants,
    node_statuses,
    nodes,
    users,
)
from shovey_trio.store.sql.transaction import WriteTransaction

EPOCH: Final = "epoch"
PROBE: Final = "probe"

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


def write_user(transaction: WriteTransaction, user: User) -> None:
    store_value(transaction, USER, user)


def remove_user(transaction: WriteTransaction, organization: str, name: str) -> bool:
    return remove_row(transaction, users, {"organization": organization, "name": name})


def load_users(connection: Connection) -> Sequence[User]:
    return load_values(connection, USER)


def write_grant(transaction: WriteTransaction, grant: Grant) -> None:
    store_value(transaction, GRANT, grant)


def remove_grant(transaction: WriteTransaction, grant: Grant) -> bool:
    return remove_value(transaction, GRANT, grant)


def load_grants(connection: Connection, organization: str, user: str) -> Sequence[Grant]:
    return load_values(connection, GRANT, grants.c.organization == organization, grants.c.user == user)


def write_certificate(
    transaction: WriteTransaction, *, serial: str, organization: str, subject: str, expires_at: float, renews: str
) -> bool:
    """See ``Store.write_certificate``."""
    void = select(certificates.c.serial).where(certificates.c.serial == renews, REVOKED)
    if renews and transaction.connection.execute(void).first() is not None:
        return False
    transaction.connection.execute(
        insert(certificates),
        {
            "serial": serial,
            "organization": organization,
            "subject": subject,
            "expires_at": expires_at,
            "revoked": 0,
        },
    )
    return True


def revoke_certificates(transaction: WriteTransaction, organization: str, subject: str) -> Sequence[str]:
    """Revokes all certificates of a subject; returns the serials of all, those revoked before included."""
    where = (certificates.c.organization == organization, certificates.c.subject == subject)
    connection = transaction.connection
    connection.execute(update(certificates).where(*where).values(revoked=1))
    return tuple(
        connection.execute(select(certificates.c.serial).where(*where).order_by(certificates.c.serial)).scalars()
    )


def revoked_serials(connection: Connection) -> Sequence[str]:
    return tuple(
        connection.execute(select(certificates.c.serial).where(REVOKED).order_by(certificates.c.serial)).scalars()
    )


def write_enrollment_token(
    transaction: WriteTransaction, *, digest: bytes, organization: str, node: str, expires_at: float
) -> None:
    transaction.connection.execute(
        insert(enrollment_tokens),
        {"digest": digest, "organization": organization, "node": node, "expires_at": expires_at},
    )


def use_enrollment_token(
    transaction: WriteTransaction, *, digest: bytes, organization: str, node: str, now: float
) -> bool:
    """See ``Store.use_enrollment_token``: one statement decides, so that of any number of racers one wins."""
    used = transaction.connection.execute(
        update(enrollment_tokens)
        .where(
            enrollment_tokens.c.digest == digest,
            enrollment_tokens.c.organization == organization,
            enrollment_tokens.c.node == node,
            enrollment_tokens.c.used_at.is_(None),
            enrollment_tokens.c.expires_at > now,
        )
        .values(used_at=now)
    )
    return used.rowcount == 1


def next_epoch(transaction: WriteTransaction, now: float) -> int:
    """See ``Store.next_epoch``."""
    stored = transaction.connection.execute(
        select(counters.c.value).where(counters.c.name == EPOCH)
    ).scalar_one_or_none()
    epoch = max((stored or 0) + 1, int(now))
    set_counter(transaction, EPOCH, epoch)
    return epoch


def probe(transaction: WriteTransaction, now: float) -> None:
    """See ``Store.probe``. Another value each time: a transaction that changes nothing would not touch the disk."""
    set_counter(transaction, PROBE, int(now * 1000))


def set_counter(transaction: WriteTransaction, name: str, value: int) -> None:
    """Stores one of the store's own numbers."""
    put_row(transaction, counters, {"name": name}, {"value": value})
