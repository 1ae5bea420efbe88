"""Who reports: a schob may sign under the longer of its names, and does not have to say of which organization it is.

schob makes its URLs with go-chef, which drops the last segment of an endpoint that has no slash at its end: with
``https://host/organizations/acme`` it asks for ``/organizations/shovey/jobs/…``. An endpoint without a path says
nothing of the organization either. Then a report is for the organization of its job.
"""

from __future__ import annotations

from collections.abc import Sequence

from shovey_trio.chef.auth import ChefCallers
from shovey_trio.chef.callers import ChefCaller
from shovey_trio.shovey.rest.routing import Target
from shovey_trio.shovey.route.names import node_name
from shovey_trio.shovey.route.reports import SchobReports


class Senders:
    """Finds the keys of a request's sender, and the organization that its report is for.

    Implements ``chef.auth.ChefCallers``.
    """

    def __init__(self, callers: ChefCallers, reports: SchobReports | None) -> None:
        self._callers = callers
        self._reports = reports

    async def find(self, organization: str, name: str) -> Sequence[ChefCaller]:
        """Whoever has this name, or the name behind the organization's; raises what ``ChefCallers.find`` does."""
        plain = node_name(name, organization)
        return await self._callers.find(organization, name) or (
            await self._callers.find(organization, plain) if plain != name else ()
        )

    async def organization_of(self, method: str, target: Target) -> str:
        """The organization that a request is for; nothing is believed of it yet.

        Raises:
            StoreUnavailable: it cannot be looked up now.
        """
        match target.segments:
            case ("shovey", "jobs" | "stream", job_id, node) if (
                method == "PUT" and self._reports is not None and not target.prefix
            ):
                return await self._reports.organization_of(job_id, node) or target.organization
        return target.organization
