"""The launcher's settings as plain values, for the process that ``shovey-agent launcher`` becomes (``replaced``)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from shovey_trio.core.errors import ConfigurationInvalid

if TYPE_CHECKING:
    from shovey_agent.config import AgentSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherPlan:
    """The settings that the launcher needs, as plain values.

    Attributes:
        state_dir: the launcher's own, for its account alone.
        socket: where the network part finds it.
        user: the network part's account.
        whitelist: what may run.
        max_runs, max_processes, output_cap, spool_cap: as in ``runs``.
        log_level, log_format: as in ``log``.
    """

    state_dir: str
    socket: str
    user: str
    whitelist: str
    max_runs: int
    max_processes: int
    output_cap: int
    spool_cap: int
    log_level: str
    log_format: Literal["auto", "console", "json"]


def plan_launcher(settings: AgentSettings) -> LauncherPlan:
    """What of an agent's settings is the launcher's.

    Raises:
        ConfigurationInvalid: they say nothing of a launcher.
    """
    if not settings.launcher.socket:
        raise ConfigurationInvalid("launcher.socket is empty: where shall the network part find the launcher?")
    return LauncherPlan(
        state_dir=os.fspath(settings.launcher.state_dir),
        socket=os.fspath(settings.launcher.socket),
        user=settings.launcher.user,
        whitelist=os.fspath(settings.agent.whitelist),
        max_runs=settings.runs.max_concurrent,
        max_processes=settings.runs.max_processes,
        output_cap=settings.runs.output_cap,
        spool_cap=settings.runs.spool_cap,
        log_level=settings.log.level,
        log_format=settings.log.format,
    )
