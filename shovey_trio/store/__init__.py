"""Durable storage: ``open_store`` gives the ``Store`` of ``nursery.ports`` in a SQLite file."""

from shovey_trio.store.sqlite import open_store

__all__ = ["open_store"]
