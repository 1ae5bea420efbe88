"""The agent's settings as plain values, for the process that ``shovey-agent run`` becomes (``replaced``)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from shovey_trio.core.jobs.model import LinkMode

if TYPE_CHECKING:
    from shovey_agent.config import AgentSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconnect:
    """When the agent calls its controller; seconds, as in ``reconnect`` of its settings."""

    delay_min: float = 0.5
    delay_max: float = 60.0
    pull_every: float = 600.0
    linger: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPlan:
    """The settings that the agent needs while it runs, as plain values.

    Attributes:
        state_dir, whitelist, server, link, tags: as in ``agent``.
        launcher: the launcher's socket; empty for none.
        serf: RPC address of the serf agent; empty for none.
        serf_key_file: with its authentication key; empty for none.
        max_runs, max_processes, output_cap, spool_cap: as in ``runs``.
        reconnect: as in ``reconnect``.
        log_level, log_format: as in ``log``.
    """

    state_dir: str
    whitelist: str
    server: str
    link: LinkMode
    tags: dict[str, str]
    launcher: str
    serf: str
    serf_key_file: str
    max_runs: int
    max_processes: int
    output_cap: int
    spool_cap: int
    reconnect: Reconnect
    log_level: str
    log_format: Literal["auto", "console", "json"]

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        """The plan that ``dataclasses.asdict`` made this of."""
        nested = {"link": LinkMode(document["link"]), "reconnect": Reconnect(**document["reconnect"])}
        return cls(**{**document, **nested})


def plan_agent(settings: AgentSettings) -> AgentPlan:
    """What of an agent's settings it needs while it runs."""
    return AgentPlan(
        state_dir=os.fspath(settings.agent.state_dir),
        whitelist=os.fspath(settings.agent.whitelist),
        server=settings.agent.server,
        link=settings.agent.link,
        tags=dict(settings.agent.tags),
        launcher=os.fspath(settings.launcher.socket),
        serf=settings.serf.address if settings.serf.enabled else "",
        serf_key_file=os.fspath(settings.serf.auth_key_file),
        max_runs=settings.runs.max_concurrent,
        max_processes=settings.runs.max_processes,
        output_cap=settings.runs.output_cap,
        spool_cap=settings.runs.spool_cap,
        reconnect=Reconnect(**settings.reconnect.model_dump()),
        log_level=settings.log.level,
        log_format=settings.log.format,
    )
