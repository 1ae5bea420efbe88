"""What the REST shim calls that others implement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from shovey_trio.core.jobs.model import Principal


class LegacyNodes(Protocol):
    """Nodes that report over HTTP: schob, and ``shovey-agent --legacy``.

    The shim has checked the signature, the role and that ``node`` is the caller's own name before it calls; ``body`` is
    the request's JSON object, its members not yet checked.
    """

    async def run_put(self, principal: Principal, job_id: str, node: str, body: Mapping[str, object]) -> None:
        """Takes a node's report of its run (``PUT /shovey/jobs/ID/NODE``); durable when it returns.

        Raises:
            NotFound: no such job, or no run of it on this node.
            PermissionDenied: the run is not the caller's.
            InvalidRequest: a member is missing, has another type, or names a state that does not exist.
            IllegalReport: the run cannot go there from where it is; nothing was changed.
        """
        ...

    async def stream_put(self, principal: Principal, job_id: str, node: str, body: Mapping[str, object]) -> None:
        """Takes a chunk of a run's output (``PUT /shovey/stream/ID/NODE``); durable when it returns.

        Raises:
            NotFound, PermissionDenied, InvalidRequest: as for ``run_put``.
            DuplicateChunk: a chunk with this sequence number is stored already (409).
        """
        ...

    def legacy_public_key(self, organization: str) -> str:
        """PEM of the RSA key that orders to old nodes of this organization are signed with.

        Raises:
            NotFound: an organization this controller does not serve, or no key was made for it.
        """
        ...

    async def reset_key(self, organization: str) -> str:
        """Makes a new key and returns its PEM; nodes move to it one by one (``LegacyNodes`` keeps the old one).

        Raises:
            NotFound: an organization this controller does not serve.
        """
        ...
