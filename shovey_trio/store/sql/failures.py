"""What SQLAlchemy and a database's driver raise, as the errors that the store's callers know.

Nothing else crosses this border. What a driver means by its errors is the driver's part of the store to say.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from shovey_trio.core.errors import RowDamaged, StoreCorrupt, StoreUnavailable
from shovey_trio.store.sql.rows import UndecodableRow


class StoreConflict(Exception):
    """Our own bug: a write that breaks a rule of the tables, such as a second run for one node of a job."""


class UndecodableText(StoreCorrupt):
    """A text is none; which row it is in is not said."""


Translate = Callable[[Exception], Exception]
"""Gives the error to raise in place of another; the other itself when it is not the database's."""


def translator(name: str, driver: Callable[[BaseException, str], Exception | None]) -> Translate:
    """What translates the errors of a statement, a commit, or a row's decoder.

    Args:
        name: of the store, for messages.
        driver: what the driver's own errors mean, with that name; None for errors that are not the driver's.
    """

    def translate(error: Exception) -> Exception:
        if isinstance(error, UndecodableRow):
            return RowDamaged(f"a row of the store is damaged: {error}", row=str(error))
        if isinstance(error, PoolTimeout | OSError):
            return StoreUnavailable(f"{name}: {error}", path=name)
        original = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        meant = driver(original, name)
        if meant is not None:
            return meant
        # Drivers refuse integers over 64 bits and lone surrogates by errors of Python's own.
        if isinstance(error, SQLAlchemyError | OverflowError | UnicodeEncodeError):
            return StoreConflict(f"{name}: {error}")
        return error

    return translate
