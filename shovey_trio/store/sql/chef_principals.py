"""Chef principals: reads of a snapshot, writes of a write transaction."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from shovey_trio.core.chef.principals import ChefPrincipal, ChefPrincipalKind
from shovey_trio.store.sql.rows import CHEF_PRINCIPAL
from shovey_trio.store.sql.tabled import load_values, remove_row, store_value
from shovey_trio.store.sql.tables import chef_principals
from shovey_trio.store.sql.transaction import WriteTransaction


def write_chef_principals(transaction: WriteTransaction, principals: Sequence[ChefPrincipal]) -> None:
    """Stores principals, in place of those of the same kind and name."""
    for principal in principals:
        store_value(transaction, CHEF_PRINCIPAL, principal)


def remove_chef_principal(transaction: WriteTransaction, organization: str, kind: ChefPrincipalKind, name: str) -> bool:
    """Whether there was one."""
    key = {"organization": organization, "kind": kind.value, "name": name}
    return remove_row(transaction, chef_principals, key)


def load_chef_principals(connection: Connection) -> Sequence[ChefPrincipal]:
    """All of them, by organization, kind and name."""
    return load_values(connection, CHEF_PRINCIPAL)
