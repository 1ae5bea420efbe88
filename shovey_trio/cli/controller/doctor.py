"""``shovey-trio doctor``: checks a set-up without changing anything and says what to do."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
import trio

from shovey_trio.cli.controller.doctor_checks import (
    Finding,
    Status,
    check_admin,
    check_certificates,
    check_clock,
    check_disk,
    check_files,
    check_node_clocks,
    check_signing_keys,
    check_store,
)
from shovey_trio.cli.controller.doctor_network import check_ports, check_serf
from shovey_trio.cli.controller.options import load_from_options, source_options
from shovey_trio.config.server import ServerSettings, find_config_file
from shovey_trio.core.errors import ConfigurationInvalid
from shovey_trio.core.jobs.model import Node

_COLORS = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "red"}


@click.command()
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@source_options
@click.pass_context
def doctor(
    ctx: click.Context, output: str, config: Path | None, data_dir: Path | None, assignments: tuple[str, ...]
) -> None:
    """Check configuration, files, certificates, keys, ports, store, disk, clock, serf and node names.

    Changes nothing and may run beside the daemon. Exit code 0: nothing failed (warnings are allowed); 1: something did.
    """
    findings = diagnose(config, data_dir, assignments)
    if output == "json":
        click.echo(json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        _print_table(findings)
    ctx.exit(1 if any(finding.status is Status.FAIL for finding in findings) else 0)


def diagnose(config: Path | None, data_dir: Path | None, assignments: tuple[str, ...]) -> Sequence[Finding]:
    """Everything that doctor finds, in the order in which it matters. Blocking, up to some 15 s."""
    try:
        settings = load_from_options(config, data_dir, assignments)
    except ConfigurationInvalid as exc:
        return [Finding(check="configuration", status=Status.FAIL, message=exc.message, advice="docs/configuration.md")]
    now = time.time()
    # The store needs an event loop of its own, the network checks share another.
    store, nodes = check_store(settings)
    return [
        Finding(check="configuration", status=Status.OK, message=_name_source(config, data_dir)),
        *check_files(settings),
        *check_certificates(settings, now),
        *check_admin(settings, now),
        *check_signing_keys(settings),
        *store,
        *check_disk(settings),
        *check_clock(nodes, now),
        *check_node_clocks(nodes),
        *trio.run(_check_network, settings, nodes),
    ]


async def _check_network(settings: ServerSettings, nodes: Sequence[Node]) -> list[Finding]:
    return [*await check_ports(settings), *await check_serf(settings, nodes)]


def _name_source(config: Path | None, data_dir: Path | None) -> str:
    file = find_config_file(flag=config, data_dir=data_dir, environ=os.environ)
    return str(file) if file is not None else "no file: defaults, environment and flags"


def _print_table(findings: Sequence[Finding]) -> None:
    width = max(len(finding.check) for finding in findings)
    indent = " " * (6 + width + 2)
    for finding in findings:
        status = click.style(f"{finding.status:<4}", fg=_COLORS[finding.status])
        message = finding.message.replace("\n", "\n" + indent)
        click.echo(f"{status}  {finding.check:<{width}}  {message}")
        if finding.advice:
            click.echo(f"{indent}→ {finding.advice}")
    failed = sum(finding.status is Status.FAIL for finding in findings)
    warned = sum(finding.status is Status.WARN for finding in findings)
    click.echo(f"{failed} failed, {warned} warned, {len(findings) - failed - warned} ok")
