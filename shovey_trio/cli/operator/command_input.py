"""What a command is given, on the command line: arguments, variables, standard input, secrets, an account."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenInput:
    """What the options say, files read."""

    args: dict[str, str]
    env: dict[str, str]
    user: str
    stdin: bytes
    secret_env: dict[str, str]
    secret_stdin: bool


def name_pairs(_ctx: click.Context, _param: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:
    """Click's view of repeated NAME=VALUE, each name once. The value may be empty."""
    pairs: dict[str, str] = {}
    for text in value:
        name, equals, wanted = text.partition("=")
        if not (name and equals):
            raise click.BadParameter("give NAME=VALUE")
        if name in pairs:
            raise click.BadParameter(f"{name} is given twice")
        pairs[name] = wanted
    return pairs


def secret_sources(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:
    """Click's view of repeated NAME=@FILE: a secret on a command line would be in the process list and the history."""
    pairs = name_pairs(ctx, param, value)
    for name, source in pairs.items():
        if not source.startswith("@") or len(source) == 1:
            raise click.BadParameter(f"{name}: a secret is read from a file, {name}=@FILE, or from {name}=@-")
    return {name: source[1:] for name, source in pairs.items()}


def plain_input_options(command: F) -> F:
    """Adds the options of what may be shown: ``args``, ``env`` and ``user``."""
    options = (
        click.option("--arg", "args", multiple=True, callback=name_pairs, metavar="NAME=VALUE", help=_ARG),
        click.option("--env", "env", multiple=True, callback=name_pairs, metavar="NAME=VALUE", help=_ENV),
        click.option("--user", default="", metavar="NAME", help="Account to run as, of those the node permits."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def input_options(command: F) -> F:
    """Adds every option of ``read_input``."""
    options = (
        click.option("--stdin", "stdin_file", metavar="FILE", help="Send FILE as standard input; - for your own."),
        click.option(
            "--env-secret",
            "env_secrets",
            multiple=True,
            callback=secret_sources,
            metavar="NAME=@FILE",
            help="Set a variable from FILE (- for standard input) that is never stored or shown.",
        ),
        click.option("--stdin-secret", is_flag=True, help="Never store or show what --stdin sends."),
    )
    for option in reversed(options):
        command = option(command)
    return plain_input_options(command)


def read_input(
    *,
    args: dict[str, str],
    env: dict[str, str],
    user: str,
    stdin_file: str | None,
    env_secrets: dict[str, str],
    stdin_secret: bool,
) -> GivenInput:
    """Reads the files that the options name.

    Raises:
        click.UsageError: standard input is asked for twice, or a file cannot be read as it should be.
    """
    sources = [*env_secrets.values(), *([stdin_file] if stdin_file else [])]
    if sources.count("-") > 1:
        raise click.UsageError("standard input can be read once only")
    if stdin_secret and not stdin_file:
        raise click.UsageError("--stdin-secret says how --stdin is sent; give both")
    secret_env = {}
    for name, source in env_secrets.items():
        try:
            # A file that an editor wrote ends in a newline that no password has.
            secret_env[name] = _read(source).decode().removesuffix("\n")
        except UnicodeDecodeError:
            raise click.UsageError(f"{source} is no UTF-8 text") from None
    return GivenInput(
        args=args,
        env=env,
        user=user,
        stdin=_read(stdin_file) if stdin_file else b"",
        secret_env=secret_env,
        secret_stdin=stdin_secret,
    )


def _read(source: str) -> bytes:
    if source == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise click.UsageError(f"{source} cannot be read: {error.strerror}") from None


_ARG = "Give the command's argument NAME a value; the node's whitelist says which it takes."
_ENV = "Set a variable, of those the node's whitelist permits."
