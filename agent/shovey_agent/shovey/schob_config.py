"""schob's own configuration: its file and its flags, as settings of this agent.

The file is flat TOML (``endpoint = …``, ``clientname = …``); ours has sections, so the two cannot be taken for each
other. Paths in it are relative to the working directory, as schob has them.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import structlog

from shovey_trio.core.errors import ConfigurationInvalid

_log = structlog.get_logger(__name__)

#: schob's key → our setting.
SETTINGS: Final[Mapping[str, str]] = {
    "endpoint": "legacy.endpoint",
    "clientname": "legacy.node_name",
    "organization": "legacy.organization",
    "key-file": "legacy.key_file",
    "sign-pub-key": "legacy.sign_pub_key",
    "time-slew": "legacy.time_slew",
    "whitelist": "agent.whitelist",
    "serf-addr": "serf.address",
    "log-level": "log.level",
}
#: Understood and without effect here.
IGNORED: Final[Mapping[str, str]] = {
    "queue-save-file": "the spool in agent.state_dir does its work",
    "log-file": "the log goes to standard error",
    "syslog": "the log goes to standard error",
    "debug-level": "use log-level",
    "run-timeout": "every order has its own timeout",
}
_PATHS: Final = frozenset({"key-file", "sign-pub-key", "whitelist"})
_GO_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_GO_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def schob_settings(
    file: Path | None, flags: Mapping[str, object], *, legacy: bool
) -> tuple[Path | None, list[tuple[str, object]]]:
    """The configuration file that is left to be read as ours, and the settings from schob's file and flags.

    Args:
        file: named or found; only with ``legacy`` it may be schob's.
        flags: schob's flags by parameter name, None where not given.
        legacy: whether the agent was told to work as a schob.

    Raises:
        ConfigurationInvalid: a value is of no use.
    """
    given = {name.replace("_", "-"): value for name, value in flags.items() if value is not None}
    settings: list[tuple[str, object]] = [("agent.protocol", "shovey")] if legacy else []
    if legacy and file is not None and is_schob_file(file):
        settings += read_schob_file(file)
        file = None
    names = {"node-name": "clientname"}
    settings += translate({names.get(name, name): value for name, value in given.items()})
    return file, settings


def is_schob_file(file: Path) -> bool:
    """Whether a configuration file is schob's: it names something at its top level that only schob's does."""
    try:
        document = tomllib.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return False  # whoever reads it as ours will say what is wrong
    return any(key in document and not isinstance(document[key], dict) for key in (*SETTINGS, *IGNORED))


def read_schob_file(file: Path) -> tuple[tuple[str, object], ...]:
    """The settings in schob's file.

    Raises:
        ConfigurationInvalid: a key is not schob's, or a value is of no use.
    """
    document = tomllib.loads(file.read_text("utf-8"))
    unknown = sorted(document.keys() - SETTINGS.keys() - IGNORED.keys())
    if unknown:
        raise ConfigurationInvalid(f"{file}: not schob's: {', '.join(unknown)}")
    return tuple(translate(document))


def translate(values: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Our settings for schob's.

    Raises:
        ConfigurationInvalid: a duration that is none.
    """
    for key, value in values.items():
        if key in IGNORED:
            _log.info("schob.setting_ignored", key=key, why=IGNORED[key])
        elif key in _PATHS:
            yield SETTINGS[key], Path(str(value)).expanduser().absolute()
        elif key == "time-slew":
            yield SETTINGS[key], go_duration(str(value))
        elif key == "log-level":
            level = str(value).lower()
            yield SETTINGS[key], "error" if level == "critical" else level
        else:
            yield SETTINGS[key], value


def go_duration(text: str) -> float:
    """Seconds of a duration as Go writes it: ``15m``, ``1h30m``, ``150s``.

    Raises:
        ConfigurationInvalid: it is none.
    """
    parts = _GO_DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ConfigurationInvalid(f"time-slew = {text!r}: expected a duration such as 5m or 150s")
    return sum(float(number) * _GO_UNITS[unit] for number, unit in parts)
