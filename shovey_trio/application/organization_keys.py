"""The signing keys of every organization as they are right now: what signs and what publishes asks here."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shovey_trio.core.errors import NotFound
from shovey_trio.core.trust.key_trust import PublishedKeys
from shovey_trio.core.trust.order_signing import SigningKey
from shovey_trio.identity.signing_keys import SigningKeys


class OrganizationKeys:
    """Keys by organization. Replaced all at once, so that what is published and what signs never differ."""

    def __init__(self, keys: Mapping[str, SigningKeys]) -> None:
        self._keys = dict(keys)
        self._published = {organization: known.published() for organization, known in keys.items()}

    def published(self, organization: str) -> PublishedKeys:
        """The public keys that an organization's orders are signed with.

        Raises:
            NotFound: an organization this controller does not serve.
        """
        try:
            return self._published[organization]
        except KeyError:
            raise NotFound(f"there is no organization {organization}", organization=organization) from None

    def active(self) -> Mapping[str, SigningKey]:
        """The key that each organization's new orders are signed with."""
        return {organization: known.active for organization, known in self._keys.items()}

    def for_doorbells(self, organization: str, now: float) -> Ed25519PrivateKey:
        """The key that an organization's doorbells are signed with; see ``SigningKeys.for_doorbells``.

        Raises:
            NotFound: as ``published``.
        """
        self.published(organization)
        return self._keys[organization].for_doorbells(now)

    def replace(self, keys: Mapping[str, SigningKeys]) -> Collection[str]:
        """Uses these keys from now on; returns the organizations that are still there and have other keys now."""
        before = self._published
        self._keys = dict(keys)
        self._published = {organization: known.published() for organization, known in keys.items()}
        return [name for name, now in self._published.items() if name in before and before[name] != now]
