"""Options that the commands of ``shovey-trio`` share: where the settings come from."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import click

from shovey_trio.config.server import ServerSettings, find_config_file, load_server_settings
from shovey_trio.config.sources import parse_overrides
from shovey_trio.core.errors import NotFound
from shovey_trio.identity.bootstrap import check_set_up
from shovey_trio.identity.names import check_organization
from shovey_trio.identity.organizations import organizations

P = ParamSpec("P")
T = TypeVar("T")

_PATH = click.Path(path_type=Path, resolve_path=True)


def load_from_options(config: Path | None, data_dir: Path | None, assignments: tuple[str, ...]) -> ServerSettings:
    """The settings that these options stand for.

    Raises:
        ConfigurationInvalid: the message lists everything that is wrong.
    """
    file = find_config_file(flag=config, data_dir=data_dir, environ=os.environ)
    overrides = parse_overrides(assignments)
    if data_dir is not None:
        overrides = (*overrides, ("server.data_dir", data_dir))
    return load_server_settings(file, environ=os.environ, overrides=overrides)


def source_options(function: Callable[P, T]) -> Callable[P, T]:
    """Adds ``--config``, ``--data-dir`` and ``--set``, passed as ``config``, ``data_dir`` and ``assignments``."""
    for option in (
        click.option("--set", "assignments", multiple=True, metavar="SECTION.KEY=VALUE", help="Override one setting."),
        click.option("--data-dir", type=_PATH, help="Data directory; its shovey-trio.toml is used."),
        click.option("--config", "-c", type=_PATH, help="Configuration file."),
    ):
        function = option(function)
    return function


def with_settings(function: Callable[Concatenate[ServerSettings, P], T]) -> Callable[..., T]:
    """Adds the options of ``source_options`` and passes the settings they stand for, of a set-up, as first argument."""

    @source_options
    @wraps(function)
    def command(
        *args: Any, config: Path | None, data_dir: Path | None, assignments: tuple[str, ...], **kwargs: Any
    ) -> T:
        settings = load_from_options(config, data_dir, assignments)
        check_set_up(settings.directory)
        return function(settings, *args, **kwargs)

    return command


def of_organization(settings: ServerSettings, name: str) -> ServerSettings:
    """The settings of another organization of the same controller."""
    server = settings.server.model_copy(update={"organization": name})
    return settings.model_copy(update={"server": server})


def for_organization(function: Callable[Concatenate[ServerSettings, P], T]) -> Callable[..., T]:
    """As ``with_settings``, with ``--org``: the settings are of that organization, which must be there."""

    @click.option("--org", metavar="NAME", help="Of this organization.  [default: the controller's own]")
    @with_settings
    @wraps(function)
    def command(settings: ServerSettings, /, *args: Any, org: str | None, **kwargs: Any) -> T:
        if org is not None:
            known = check_organization(org)
            if known not in {settings.server.organization, *organizations(settings.directory)}:
                raise NotFound(
                    f"there is no organization {org}; `shovey-trio org add {org}` makes it", organization=org
                )
            settings = of_organization(settings, known)
        return function(settings, *args, **kwargs)

    return command
