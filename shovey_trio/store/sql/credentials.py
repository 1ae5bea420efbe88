"""Certificates and enrolment tokens: reads of a snapshot, writes of a write transaction."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, insert, select, update

from shovey_trio.store.sql.tables import REVOKED, certificates, enrollment_tokens
from shovey_trio.store.sql.transaction import WriteTransaction


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
    transaction: WriteTransaction, *, digest: bytes, organization: str, node: str, now: float, holder: str
) -> bool:
    """See ``Store.use_enrollment_token``: one statement decides, so that of any number of racers one wins."""
    of_node = (enrollment_tokens.c.organization == organization, enrollment_tokens.c.node == node)
    used = transaction.connection.execute(
        update(enrollment_tokens)
        .where(
            enrollment_tokens.c.digest == digest,
            *of_node,
            enrollment_tokens.c.used_at.is_(None) | (enrollment_tokens.c.used_by == holder),
            enrollment_tokens.c.expires_at > now,
        )
        .values(used_at=now, used_by=holder or None)
    )
    if used.rowcount:
        # Whoever was this node before is it no more.
        transaction.connection.execute(
            update(enrollment_tokens)
            .where(*of_node, enrollment_tokens.c.digest != digest, enrollment_tokens.c.used_by.is_not(None))
            .values(used_by=None)
        )
    return used.rowcount == 1
