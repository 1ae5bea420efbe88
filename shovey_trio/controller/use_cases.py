"""What the controller does for its callers, whatever door they come by."""

from __future__ import annotations

from dataclasses import dataclass

from shovey_trio.application.explain import Explain
from shovey_trio.application.identities import Identities
from shovey_trio.application.jobs import Jobs
from shovey_trio.application.nodes import Nodes
from shovey_trio.application.organization_keys import OrganizationKeys
from shovey_trio.config.server import ServerSettings
from shovey_trio.controller.settings import job_defaults_of
from shovey_trio.identity.tls import ControllerTls
from shovey_trio.nursery.engine import Engine
from shovey_trio.nursery.whitelist_asks import WhitelistAsks
from shovey_trio.store.contract import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class UseCases:
    """Made by ``make_use_cases``."""

    jobs: Jobs
    nodes: Nodes
    identities: Identities
    explain: Explain
    asks: WhitelistAsks


async def make_use_cases(
    settings: ServerSettings, *, store: Store, engine: Engine, tls: ControllerTls, keys: OrganizationKeys
) -> UseCases:
    """The use cases of a running engine, with users and revocations loaded.

    Raises:
        StoreUnavailable: they cannot be read.
    """
    services, supervisor, registry = engine.services, engine.supervisor, engine.registry
    identities = Identities(
        store=store,
        services=services,
        registry=registry,
        authority=tls.authority,
        ca_certificates=tls.ca_pem,
        keys=keys,
    )
    await identities.load()
    jobs = Jobs(
        store=store,
        services=services,
        supervisor=supervisor,
        registry=registry,
        defaults=job_defaults_of(settings),
    )
    asks = WhitelistAsks()
    return UseCases(
        jobs=jobs,
        nodes=Nodes(store=store, services=services, supervisor=supervisor, registry=registry, doorbell=engine.doorbell),
        identities=identities,
        explain=Explain(
            jobs=jobs,
            identities=identities,
            registry=registry,
            links=engine.links,
            routes=services.routes,
            asks=asks,
        ),
        asks=asks,
    )
