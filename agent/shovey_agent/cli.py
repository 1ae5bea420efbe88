"""The command line of ``shovey-agent``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from shovey_agent.program.replaced import become
from shovey_trio.cli.text.program import run_program
from shovey_trio.core.errors import Exit

if TYPE_CHECKING:
    from shovey_agent.config import AgentSettings

_PATH = click.Path(path_type=Path, resolve_path=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="shovey-trio", prog_name="shovey-agent")
def cli() -> None:
    """The agent of shovey-trio: runs whitelisted commands for its controller."""


@cli.command()
@click.option("--config", "-c", type=_PATH, help="Configuration file.")
@click.option("--state-dir", type=_PATH, help="Credentials, spool and used nonces.")
@click.option("--whitelist", "-w", type=_PATH, help="Commands that may be run.")
@click.option("--set", "assignments", multiple=True, metavar="SECTION.KEY=VALUE", help="Override one setting.")
@click.option("--legacy", is_flag=True, help="Work as a schob; --config may then be schob's own file.")
@click.option("--endpoint", "-e", metavar="URL", help="With --legacy: the server to report to.")
@click.option("--node-name", "-n", metavar="NAME", help="With --legacy: this node's client name.")
@click.option("--organization", "-o", metavar="NAME", help="With --legacy: the organization, if there are several.")
@click.option("--key-file", "-k", type=_PATH, help="With --legacy: the client's private key.")
@click.option("--sign-pub-key", "-p", type=_PATH, help="With --legacy: public key that orders are signed with.")
@click.option("--serf-addr", metavar="HOST:PORT", help="With --legacy: RPC address of the serf agent.")
@click.option("--time-slew", "-m", metavar="DURATION", help="With --legacy: how far an order's time may be off.")
@click.option("--queue-save-file", "-q", type=_PATH, help="With --legacy: taken for schob's sake; the spool does it.")
def run(
    config: Path | None,
    state_dir: Path | None,
    whitelist: Path | None,
    assignments: tuple[str, ...],
    legacy: bool,
    **schob_flags: object,
) -> None:
    """Run the agent in the foreground. TERM stops it, its commands go on; HUP reads the whitelist again."""
    from shovey_agent.config import find_config_file, load_agent_settings
    from shovey_agent.program.agent_plan import plan_agent
    from shovey_agent.shovey.schob_config import schob_settings
    from shovey_trio.config.sources import parse_overrides

    overrides = list(parse_overrides(assignments))
    overrides += [("agent.state_dir", state_dir)] if state_dir else []
    overrides += [("agent.whitelist", whitelist)] if whitelist else []
    file = find_config_file(flag=config, environ=os.environ)
    file, from_schob = schob_settings(file, schob_flags, legacy=legacy)
    overrides = [*from_schob, *overrides]
    settings = load_agent_settings(file, environ=os.environ, overrides=overrides)
    if settings.agent.protocol == "shovey":
        _run_as_schob(settings)
    else:
        become("shovey_agent.agent", plan_agent(settings))


def _run_as_schob(settings: AgentSettings) -> None:
    import trio

    from shovey_agent.shovey.agent import run_legacy_agent
    from shovey_trio.observe.logs import configure_logging

    configure_logging(level=settings.log.level, format_=settings.log.format)
    trio.run(run_legacy_agent, settings)


@cli.command()
@click.option("--config", "-c", type=_PATH, help="Configuration file.")
@click.option("--state-dir", type=_PATH, help="The launcher's spool, used nonces and keys.")
@click.option("--whitelist", "-w", type=_PATH, help="Commands that may be run.")
@click.option("--socket", type=_PATH, help="Where the agent's network part finds the launcher.")
@click.option("--set", "assignments", multiple=True, metavar="SECTION.KEY=VALUE", help="Override one setting.")
def launcher(
    config: Path | None,
    state_dir: Path | None,
    whitelist: Path | None,
    socket: Path | None,
    assignments: tuple[str, ...],
) -> None:
    """Run the launcher in the foreground: the root part of an agent whose network part needs no rights."""
    from shovey_agent.config import find_config_file, load_agent_settings
    from shovey_agent.desk.launcher_plan import plan_launcher
    from shovey_trio.config.sources import parse_overrides

    named = {"launcher.state_dir": state_dir, "agent.whitelist": whitelist, "launcher.socket": socket}
    overrides = list(parse_overrides(assignments))
    overrides += [(key, value) for key, value in named.items() if value is not None]
    file = find_config_file(flag=config, environ=os.environ)
    settings = load_agent_settings(file, environ=os.environ, overrides=overrides)
    become("shovey_agent.desk.launcher", plan_launcher(settings))


@cli.command()
@click.argument("join", required=False)
@click.option(
    "--join-file",
    type=click.File("r", errors="replace"),
    help="Read the join string from a file, - for standard input.",
)
@click.option("--state-dir", type=_PATH, default=Path("/var/lib/shovey-agent"), show_default=True)
@click.option("--again", is_flag=True, help="Replace credentials that are there; the node becomes a new instance.")
@click.option("--split", is_flag=True, help="As root, for an agent in two parts: the launcher gets its keys too.")
@click.option("--user", metavar="NAME", default="shovey-agent", show_default=True, help="The network part's account.")
@click.option("--launcher-dir", type=_PATH, default=Path("/var/lib/shovey-agent-launcher"), show_default=True)
def enroll(
    join: str | None, join_file: TextIO | None, state_dir: Path, again: bool, split: bool, **two_parts: Any
) -> None:
    """Exchange the JOIN string that `shovey-trio node token NAME` printed for this node's credentials."""
    import trio

    from shovey_agent.credentials import CredentialStore
    from shovey_agent.net.enroll import call_enroll, prepare_split
    from shovey_agent.net.enroll import enroll as exchange
    from shovey_trio.core.trust.enrollment import decode_join

    if (join is None) == (join_file is None):
        raise click.UsageError("give the join string, or --join-file")
    ticket = decode_join(join if join is not None else "".join(join_file or ()))

    parts = prepare_split(state_dir, two_parts["launcher_dir"], user=two_parts["user"]) if split else None

    async def main() -> None:
        with trio.fail_after(_ENROLL_DEADLINE):
            store = CredentialStore(state_dir)
            credentials = await exchange(ticket, store, call_enroll, again=again, split=parts)
        click.echo(f"enrolled as {credentials.organization}:{credentials.node}; credentials are in {state_dir}")

    # Not inside the asyncio loop that the bridge drives: there it would look like a bug of ours.
    trio.run(main, restrict_keyboard_interrupt_to_checkpoints=True)


@cli.command()
@click.option("--config", "-c", type=_PATH, help="Configuration file.")
@click.option("--state-dir", type=_PATH, help="Credentials, spool and used nonces.")
@click.option("--set", "assignments", multiple=True, metavar="SECTION.KEY=VALUE", help="Override one setting.")
def doctor(config: Path | None, state_dir: Path | None, assignments: tuple[str, ...]) -> None:
    """Look at credentials, whitelist and the serf agent beside this one, and change nothing. Exit 1: not well."""
    import trio

    from shovey_agent.config import find_config_file, load_agent_settings
    from shovey_agent.net.doctor import diagnose
    from shovey_trio.config.sources import parse_overrides

    overrides = [*parse_overrides(assignments), *([("agent.state_dir", state_dir)] if state_dir else [])]
    file = find_config_file(flag=config, environ=os.environ)
    findings = trio.run(diagnose, load_agent_settings(file, environ=os.environ, overrides=overrides))
    for finding in findings:
        click.echo(f"{'ok' if finding.is_well else 'FAIL':<5}{finding.check:<12} {finding.message}")
        if finding.advice:
            click.echo(f"{'':<17} → {finding.advice}")
    sys.exit(0 if all(finding.is_well for finding in findings) else 1)


@cli.group()
def whitelist() -> None:
    """The commands that this node runs."""


@whitelist.command()
@click.argument("file", type=_PATH)
def check(file: Path) -> None:
    """Say everything that is wrong with a whitelist FILE, or list its commands and warn of what is dangerous."""
    import shutil

    from shovey_agent.run.spool import COMMAND_PATH
    from shovey_trio.core.whitelist.whitelist import WhitelistInvalid, parse_whitelist, whitelist_warnings

    try:
        parsed = parse_whitelist(file.read_bytes())
    except WhitelistInvalid as error:
        for problem in error.problems:
            click.echo(f"{file.name}: {problem}", err=True)
        sys.exit(Exit.USAGE.value)
    for name, entry in sorted(parsed.entries.items()):
        click.echo(f"{name}: {' '.join(entry.argv)}")
        program = entry.argv[0]
        found = Path(entry.cwd or "/", program) if "/" in program else program
        if shutil.which(found, path=entry.env.get("PATH", COMMAND_PATH)) is None:
            gone = f"there is no program {program} on this host, or it may not be run"
            click.echo(f"{file.name}: warning: {name!r}: {gone}", err=True)
    for warning in whitelist_warnings(parsed):
        click.echo(f"{file.name}: warning: {warning}", err=True)


_ENROLL_DEADLINE = 60.0


def invoke(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code."""
    return run_program(cli, "shovey-agent", arguments)


def main() -> None:
    """Entry point of ``shovey-agent``."""
    # structlog imports rich where it is installed, for tracebacks that are not wanted here: 8 MiB on every node.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # None: importing it is an ImportError
    sys.exit(invoke(sys.argv[1:]))
