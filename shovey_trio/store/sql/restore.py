"""What an older copy that was put back must not do again: let in who was put out, take used tokens, start old runs."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, select

from shovey_trio.core.jobs.events import StoreRestored
from shovey_trio.core.jobs.model import Run
from shovey_trio.core.jobs.run_machine import handle
from shovey_trio.core.trust.rights import RevokedCertificate, Rights
from shovey_trio.store.sql.job_reads import unfinished_runs
from shovey_trio.store.sql.people import load_all_grants, load_chef_principals, load_users
from shovey_trio.store.sql.rows import CHEF_PRINCIPAL, GRANT, USER
from shovey_trio.store.sql.tabled import put_row, store_value
from shovey_trio.store.sql.tables import REVOKED, certificates, chef_principals, enrollment_tokens, grants, users
from shovey_trio.store.sql.transaction import WriteTransaction


def read_rights(connection: Connection) -> Rights:
    """See ``Store.read_rights``."""
    columns = (certificates.c.serial, certificates.c.organization, certificates.c.subject, certificates.c.expires_at)
    revoked = connection.execute(select(*columns).where(REVOKED).order_by(certificates.c.serial))
    return Rights(
        revoked=tuple(
            RevokedCertificate(serial=serial, organization=organization, subject=subject, expires_at=expires_at)
            for serial, organization, subject, expires_at in revoked
        ),
        users=tuple(load_users(connection)),
        grants=tuple(load_all_grants(connection)),
        chef_principals=tuple(load_chef_principals(connection)),
    )


def accept_restore(transaction: WriteTransaction, rights: Rights | None, now: float) -> Sequence[Run]:
    """See ``Store.accept_restore``."""
    connection = transaction.connection
    connection.execute(delete(enrollment_tokens))
    if rights is not None:
        for certificate in rights.revoked:
            known = {"organization": certificate.organization, "subject": certificate.subject}
            values = {**known, "expires_at": certificate.expires_at, "revoked": 1}
            put_row(transaction, certificates, {"serial": certificate.serial}, values)
        for table in (users, grants, chef_principals):
            connection.execute(delete(table))
        for user in rights.users:
            store_value(transaction, USER, user)
        for grant in rights.grants:
            store_value(transaction, GRANT, grant)
        for principal in rights.chef_principals:
            store_value(transaction, CHEF_PRINCIPAL, principal)
    unsure = []
    for run in unfinished_runs(connection):
        restored = handle(run, StoreRestored(), now).run
        if restored is not run:
            transaction.update_run(restored)
            unsure.append(restored)
    return unsure
