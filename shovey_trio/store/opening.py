"""Opens the store that a URL or a path names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from shovey_trio.core.errors import ConfigurationInvalid
from shovey_trio.store.contract import Store

_SQLITE = "sqlite"
_SOON = frozenset({"postgresql", "postgres"})


@asynccontextmanager
async def open_store(place: Path | str, *, exclusive: bool = True, create: bool = True) -> AsyncIterator[Store]:
    """Opens the store for the block; see ``store.sqlite.files.open_sqlite`` for what its end does.

    Args:
        place: a URL (``sqlite_path`` says which), or the path of an SQLite file.
        exclusive: serve it: nobody else may at the same time. False is for offline administration.
        create: make what is not there; otherwise a missing or empty store is refused.

    Raises:
        ConfigurationInvalid: no store is opened by that URL, or its files are open to others.
        StoreUnavailable: it cannot be opened now, or another process serves it.
        StoreCorrupt: it is damaged, not a store, missing, or of a newer version.
    """
    from shovey_trio.store.sqlite.files import open_sqlite

    async with open_sqlite(sqlite_path(place), exclusive=exclusive, create=create) as store:
        yield store


def sqlite_path(place: Path | str) -> Path:
    """The file that ``sqlite:///relative/path`` or ``sqlite:////absolute/path`` names, or that is named by its path.

    Raises:
        ConfigurationInvalid: the URL names another kind of store, or no file.
    """
    if isinstance(place, Path) or "://" not in place:
        return Path(place)
    scheme, _, rest = place.partition("://")
    if scheme.partition("+")[0] in _SOON:
        # Without the rest of the URL, which may hold a password.
        raise ConfigurationInvalid(f"store URL {scheme}://…: there is no store on PostgreSQL yet; use sqlite:////PATH")
    if scheme != _SQLITE:
        raise ConfigurationInvalid(f"store URL {scheme}://…: expected sqlite:////PATH")
    if not rest.startswith("/") or rest == "/":
        raise ConfigurationInvalid(f"store URL {place}: expected sqlite:////PATH, or sqlite:///PATH for a relative one")
    return Path(rest[1:])
