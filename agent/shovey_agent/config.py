"""Settings of the agent. Every default stands here and in docs/configuration.md; a test compares the two.

What the node is called, which controller it trusts and its keys are no settings: they come from enrolment
(``shovey_agent.net.enroll``) and live in the state directory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from shovey_agent.desk.whitelist_file import DEFAULT_WHITELIST_FILE
from shovey_trio.config.sources import Sources, load_settings
from shovey_trio.config.types import (
    Address,
    ByteSize,
    Duration,
    FilePath,
    LogSection,
    OptionalAddress,
    PositiveDuration,
    PositiveInt,
    Section,
)
from shovey_trio.core.jobs.model import LinkMode

ENVIRONMENT_PREFIX: Final = "SHOVEY_AGENT"
#: Names a configuration file for every command, when no flag does.
CONFIG_VARIABLE: Final = "SHOVEY_AGENT_CONFIG"
DEFAULT_FILE: Final = Path("/etc/shovey-agent/shovey-agent.toml")
#: Tags travel in each attach and are stored with the node.
MAX_TAGS: Final = 64
_TAG_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_MAX_TAG_VALUE: Final = 256


def _check_tags(tags: dict[str, str]) -> dict[str, str]:
    if len(tags) > MAX_TAGS:
        raise ValueError(f"expected at most {MAX_TAGS} tags")
    for key, value in tags.items():
        if not _TAG_KEY.fullmatch(key):
            raise ValueError(f"tag {key[:80]!r}: expected 1 to 63 letters, digits or . _ / -")
        if len(value) > _MAX_TAG_VALUE or not value.isprintable():
            raise ValueError(f"tag {key!r}: expected a value of at most {_MAX_TAG_VALUE} printable characters")
    return tags


class AgentSection(Section):
    """What the agent is to its controller."""

    state_dir: FilePath = Field(default=Path("/var/lib/shovey-agent"), description="credentials, spool, used nonces")
    whitelist: FilePath = Field(
        default=DEFAULT_WHITELIST_FILE,
        description="commands that may be run, schob's file as it is; none in the default place: `chef-client` alone",
    )
    server: OptionalAddress = Field(default="", description="control address; empty: as told at enrolment")
    link: LinkMode = Field(
        default=LinkMode.ATTACHED,
        description="`attached`: the stream stays open; `on-demand`: only while there is something to do",
    )
    tags: Annotated[dict[str, str], AfterValidator(_check_tags)] = Field(
        default_factory=dict, description="what jobs select nodes by (`--tag key=value`)"
    )
    protocol: Literal["grpc", "shovey"] = Field(
        default="grpc", description="`shovey`: work as a schob for goiardi or for a controller's legacy route"
    )


class LauncherSection(Section):
    """The agent in two parts: this one faces the network, a launcher that is root runs the commands."""

    socket: FilePath | Literal[""] = Field(
        default="", description="the launcher's Unix socket; empty: no launcher, this process runs the commands"
    )
    state_dir: FilePath = Field(
        default=Path("/var/lib/shovey-agent-launcher"), description="the launcher's spool, used nonces and keys"
    )
    user: str = Field(default="shovey-agent", description="account of the network part, which may use the socket")


class LegacySection(Section):
    """The agent as a schob; used with `agent.protocol = "shovey"` alone."""

    endpoint: str = Field(default="", description="URL of the server that runs are reported to")
    node_name: str = Field(default="", description="this node's client name")
    organization: str = Field(default="", description="organization, where the server has several")
    key_file: FilePath | Literal[""] = Field(default="", description="the client's private key, PEM")
    sign_pub_key: FilePath | Literal[""] = Field(default="", description="public key that orders are signed with, PEM")
    time_slew: PositiveDuration = Field(default=900.0, description="how far an order's time may be off this clock")


class SerfSection(Section):
    """The serf agent beside this agent."""

    enabled: bool = Field(default=True, description="listen for doorbells; needed for `on-demand`")
    address: Address = Field(default="127.0.0.1:7373", description="RPC address of the serf agent")
    auth_key_file: FilePath | Literal[""] = Field(
        default="", description="file with serf's RPC authentication key; empty: none"
    )


class RunsSection(Section):
    """Bounds on what runs and on what it leaves behind."""

    max_concurrent: PositiveInt = Field(default=10, description="runs at one time; more are refused as `busy`")
    output_cap: ByteSize = Field(
        default=256 * 2**20, description="output kept of one run, both streams; the rest is counted and dropped"
    )
    max_processes: PositiveInt = Field(
        default=2048, description="processes and threads of a run whose entry has no `limits.processes`"
    )
    spool_cap: ByteSize = Field(default=2**30, description="bytes of all spools; when full, orders are refused")


class ReconnectSection(Section):
    """When the agent calls its controller."""

    delay_min: PositiveDuration = Field(default=0.5, description="first wait after a lost stream, with jitter")
    delay_max: PositiveDuration = Field(default=60.0, description="longest wait, with jitter")
    pull_every: PositiveDuration = Field(default=600.0, description="an on-demand agent asks unrung, ± 20 %")
    linger: Duration = Field(default=2.0, description="how long an idle on-demand agent stays before it leaves")

    @model_validator(mode="after")
    def _minimum_below_maximum(self) -> Self:
        if self.delay_min > self.delay_max:
            raise ValueError("delay_min is longer than delay_max")
        return self


class AgentSettings(Section):
    """All settings of the agent."""

    agent: AgentSection = Field(default_factory=AgentSection)
    launcher: LauncherSection = Field(default_factory=LauncherSection)
    serf: SerfSection = Field(default_factory=SerfSection)
    legacy: LegacySection = Field(default_factory=LegacySection)
    runs: RunsSection = Field(default_factory=RunsSection)
    reconnect: ReconnectSection = Field(default_factory=ReconnectSection)
    log: LogSection = Field(default_factory=LogSection)

    @model_validator(mode="after")
    def _shovey_needs(self) -> Self:
        if self.agent.protocol == "shovey":
            if not self.serf.enabled:
                raise ValueError('agent.protocol = "shovey" needs serf.enabled = true: orders come over serf')
            if self.launcher.socket:
                raise ValueError('agent.protocol = "shovey" works without a launcher: leave launcher.socket empty')
            legacy = self.legacy
            missing = [
                name for name in ("endpoint", "node_name", "key_file", "sign_pub_key") if not getattr(legacy, name)
            ]
            if missing:
                raise ValueError(f'agent.protocol = "shovey" needs legacy.{", legacy.".join(missing)}')
        return self

    @model_validator(mode="after")
    def _on_demand_needs_serf(self) -> Self:
        if self.agent.link is LinkMode.ON_DEMAND and not self.serf.enabled:
            raise ValueError('agent.link = "on-demand" needs serf.enabled = true: nothing else could wake the agent')
        return self


def load_agent_settings(
    file: Path | None, *, environ: Mapping[str, str], overrides: Iterable[tuple[str, object]] = ()
) -> AgentSettings:
    """The agent's settings from defaults, ``file``, environment and flags, in this order of weight; blocking.

    Raises:
        ConfigurationInvalid: the message lists everything that is wrong.
    """
    return load_settings(
        AgentSettings, Sources(prefix=ENVIRONMENT_PREFIX, file=file, environ=environ, overrides=tuple(overrides))
    )


def find_config_file(*, flag: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The file named by flag, by ``SHOVEY_AGENT_CONFIG``, or the default one when it exists."""
    if flag is not None:
        return flag
    if environ.get(CONFIG_VARIABLE):
        return Path(environ[CONFIG_VARIABLE])
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None
