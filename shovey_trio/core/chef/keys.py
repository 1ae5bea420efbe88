"""The public keys of one Chef principal: PEM blocks, one behind the other.

A key is exchanged without a gap by adding the new one before the old one is taken away. Both hold in between.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shovey_trio.core.chef.signing import load_public_key
from shovey_trio.core.errors import InvalidRequest

#: Of one principal. Each is tried for a signature that the others do not fit, at 30 µs.
MAX_KEYS: Final = 10
_BLOCK: Final = re.compile(r"-----BEGIN ([A-Z ]+)-----.*?-----END \1-----", re.DOTALL)
_ID_BYTES: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ChefKey:
    """One of the keys.

    Attributes:
        key_id: the first 8 bytes of its SubjectPublicKeyInfo's SHA-256, in hex; the same in whichever form it came.
        pem: as it was given.
    """

    key_id: str
    pem: str
    public_key: RSAPublicKey


def read_chef_keys(text: str) -> tuple[ChefKey, ...]:
    """The keys of a text of PEM blocks, in their order, each once.

    Raises:
        InvalidRequest: there is none, one of them cannot be used, or there are more than ``MAX_KEYS``.
    """
    blocks = [found[0] for found in _BLOCK.finditer(text)]
    keys = {key.key_id: key for key in map(_read, blocks or [text])}
    if len(keys) > MAX_KEYS:
        raise InvalidRequest(f"there may be {MAX_KEYS} keys", field="public_key")
    return tuple(keys.values())


def write_chef_keys(keys: Iterable[ChefKey]) -> str:
    """The text that ``read_chef_keys`` reads."""
    return "".join(key.pem.strip() + "\n" for key in keys)


def _read(pem: str) -> ChefKey:
    key = load_public_key(pem)
    digest = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    return ChefKey(key_id=digest[:_ID_BYTES].hex(), pem=pem, public_key=key)
