"""Orders on their way out: bytes, then a signature over exactly these bytes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from shovey_trio.core.trust.order_signing import SigningKey, sign_order
from shovey_trio.core.trust.orders import Order, SignedOrder
from shovey_trio.rpc.convert import order_bytes, seal_secrets

# As long as the digest that hides what is salted.
_SALT: Final = 32


class ActiveKeySigner:
    """Signs with each organization's active key (``nursery.ports.OrderSigner``)."""

    def __init__(self, active: Mapping[str, SigningKey]) -> None:
        self._active = dict(active)

    def sign(self, order: Order) -> SignedOrder:
        """Raises KeyError for an organization without a key, which is our own bug."""
        if not order.input.secrets:
            return sign_order(order_bytes(order, b""), self._active[order.organization])
        sealed = seal_secrets(order.input.secrets, os.urandom(_SALT))
        signed = sign_order(order_bytes(order, sealed), self._active[order.organization])
        return replace(signed, sealed=sealed)

    def replace(self, active: Mapping[str, SigningKey]) -> None:
        """Signs with other keys from now on."""
        self._active = dict(active)
