"""Users, their grants, and Chef principals: reads of a snapshot, writes of a write transaction."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from shovey_trio.core.chef.principals import ChefPrincipal, ChefPrincipalKind
from shovey_trio.core.jobs.model import Grant, User
from shovey_trio.store.sql.rows import CHEF_PRINCIPAL, GRANT, USER
from shovey_trio.store.sql.tabled import load_values, remove_row, remove_value, store_value
from shovey_trio.store.sql.tables import chef_principals, grants, users
from shovey_trio.store.sql.transaction import WriteTransaction


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


def load_all_grants(connection: Connection) -> Sequence[Grant]:
    return load_values(connection, GRANT)


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
