"""The launcher's settings as plain values, and how ``shovey-agent launcher`` hands them over.

The launcher lives as long as the machine. What reads settings would be a third of its memory, so the process that has
read them becomes another one, which gets them as JSON. Systemd sees one process throughout.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, NoReturn

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
        max_runs, output_cap, spool_cap: as in ``runs``.
        log_level, log_format: as in ``log``.
    """

    state_dir: str
    socket: str
    user: str
    whitelist: str
    max_runs: int
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
        output_cap=settings.runs.output_cap,
        spool_cap=settings.runs.spool_cap,
        log_level=settings.log.level,
        log_format=settings.log.format,
    )


def become_launcher(plan: LauncherPlan) -> NoReturn:
    """Replaces this process by the launcher.

    Raises:
        OSError: the interpreter cannot be started again.
    """
    # -P: nothing in the directory that somebody was in takes the place of a module.
    command = [sys.executable, "-P", "-m", "shovey_agent.launcher", json.dumps(asdict(plan))]
    os.execv(command[0], command)  # noqa: S606 -- that it starts without a shell is the point
