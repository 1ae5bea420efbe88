"""Continuation tokens of listings.

A token names the last entry shown and carries a digest of the listing it belongs to, so that a token of another
listing, organization or filter is refused instead of giving a page of something else. It is no secret and grants
nothing: every page is authorized by itself.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Final

from shovey_trio.core.errors import InvalidToken

_DIGEST_BYTES: Final = 8
_LARGEST_KEY: Final = 2**63 - 1
_KEY_DIGITS: Final = len(str(_LARGEST_KEY))

Listing = tuple[str, ...]


def encode_page(listing: Listing, last: str) -> str:
    """The token that continues ``listing`` after its entry ``last``."""
    return base64.urlsafe_b64encode(_digest(listing) + last.encode()).decode().rstrip("=")


def decode_page(listing: Listing, token: str) -> str:
    """The entry after which ``token`` continues ``listing``.

    Raises:
        InvalidToken: the token was not made by ``encode_page`` for the same listing.
    """
    try:
        raw = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
        last = raw[_DIGEST_BYTES:].decode()
    except (binascii.Error, UnicodeError) as error:
        raise InvalidToken("the page token is malformed") from error
    if raw[:_DIGEST_BYTES] != _digest(listing) or not last:
        raise InvalidToken("the page token belongs to another listing")
    return last


def decode_key(listing: Listing, token: str) -> int:
    """As ``decode_page``, for a listing whose entries are named by an integer key."""
    last = decode_page(listing, token)
    # Longer ones are no keys of SQLite's; Python does not even convert some of them.
    if not (last.isascii() and last.isdigit()) or len(last) > _KEY_DIGITS or int(last) > _LARGEST_KEY:
        raise InvalidToken("the page token belongs to another listing")
    return int(last)


def _digest(listing: Listing) -> bytes:
    return hashlib.blake2b(repr(listing).encode(), digest_size=_DIGEST_BYTES).digest()
