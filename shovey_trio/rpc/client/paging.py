"""Listings that fetch their next page when it is needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

FetchPage = Callable[[str], Awaitable[tuple[Sequence[T], str]]]
"""Takes a page token (empty for the first page); returns the items and the token of the next page, empty for none."""


class Paged(Generic[T]):
    """Items of a paged listing, in the server's order; iterate once with ``async for``, or ``take``.

    An iterator and not an async generator: leaving the loop early leaves nothing to be closed.
    """

    def __init__(self, fetch: FetchPage[T]) -> None:
        self._fetch = fetch
        # One page: at most 1,000 items, the largest page the server gives.
        self._page: deque[T] = deque()
        self._token: str | None = ""

    def __aiter__(self) -> Paged[T]:
        return self

    async def __anext__(self) -> T:
        while not self._page:
            if self._token is None:
                raise StopAsyncIteration
            items, following = await self._fetch(self._token)
            self._page.extend(items)
            self._token = following or None
        return self._page.popleft()

    async def take(self, limit: int | None = None) -> list[T]:
        """Return the next ``limit`` items, or all that are left."""
        items: list[T] = []
        if limit == 0:
            return items
        async for item in self:
            items.append(item)
            if len(items) == limit:
                break
        return items
