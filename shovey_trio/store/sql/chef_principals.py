"""Chef principals: reads of a snapshot, writes of a write transaction."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, insert, select

from shovey_trio.core.chef.principals import ChefPrincipal, ChefPrincipalKind
from shovey_trio.core.jobs.model import Role
from shovey_trio.store.sql.rows import UndecodableRow
from shovey_trio.store.sql.tables import chef_principals
from shovey_trio.store.sql.transaction import WriteTransaction


def write_chef_principals(transaction: WriteTransaction, principals: Sequence[ChefPrincipal]) -> None:
    """Stores principals, in place of those of the same kind and name."""
    for principal in principals:
        remove_chef_principal(transaction, principal.organization, principal.kind, principal.name)
        values = {
            "organization": principal.organization,
            "kind": principal.kind.value,
            "name": principal.name,
            "role": principal.role.value,
            "public_key": principal.public_key,
            "created_at": principal.created_at,
        }
        transaction.connection.execute(insert(chef_principals), values)


def remove_chef_principal(transaction: WriteTransaction, organization: str, kind: ChefPrincipalKind, name: str) -> bool:
    """Whether there was one."""
    removed = transaction.connection.execute(
        delete(chef_principals).where(
            chef_principals.c.organization == organization,
            chef_principals.c.kind == kind.value,
            chef_principals.c.name == name,
        )
    )
    return removed.rowcount == 1


def load_chef_principals(connection: Connection) -> Sequence[ChefPrincipal]:
    """All of them, by organization, kind and name."""
    try:
        return tuple(
            ChefPrincipal(
                organization=row.organization,
                kind=ChefPrincipalKind(row.kind),
                name=row.name,
                role=Role(row.role),
                public_key=row.public_key,
                created_at=row.created_at,
            )
            for row in connection.execute(select(chef_principals).order_by(*chef_principals.primary_key))
        )
    except ValueError as error:
        raise UndecodableRow(f"a Chef principal: {error}") from error
