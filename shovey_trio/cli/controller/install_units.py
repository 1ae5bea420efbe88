"""``shovey-trio install-units``: systemd's units, the accounts they need and a first whitelist, out of the wheel."""

from __future__ import annotations

import hashlib
import sys
from importlib import resources
from pathlib import Path

import click

from shovey_trio.core.errors import Exit

_WHITELIST = "whitelist.json"
_PLACES = {
    "systemd": Path("etc/systemd/system"),
    "sysusers.d": Path("etc/sysusers.d"),
    _WHITELIST: Path("etc/shovey-agent"),
}
# In front of what is installed: whether somebody has changed it since.
_MARK = "# Installed by `shovey-trio install-units`; changes belong in a drop-in. sha256 "
_BUILT_FOR = "/usr/bin/"


@click.command("install-units")
@click.option(
    "--root",
    type=click.Path(path_type=Path, resolve_path=True, file_okay=False),
    default=Path("/"),
    show_default=True,
    help="Directory to install below.",
)
@click.option("--force", is_flag=True, help="Write over files that were changed, too.")
@click.pass_context
def install_units(context: click.Context, root: Path, force: bool) -> None:
    """Install systemd's units for controller and agent, the accounts they run as, and a first whitelist.

    Nothing is started. The units call the programs where this one is installed. What was changed here is left alone,
    and the command exits with 5; a whitelist that is there is never written over.
    """
    kept = False
    for source, target in _files(root):
        text = source.read_bytes()
        if source.name != _WHITELIST:
            text = _marked(text.replace(_BUILT_FOR.encode(), f"{Path(sys.executable).parent}/".encode()))
        before = target.read_bytes() if target.exists() else None
        if before == text or (before is not None and source.name == _WHITELIST):
            click.echo(f"{target} is there")
        elif before is not None and not force and not _is_ours(before):
            click.echo(f"{target} was changed and is left alone; --force writes over it", err=True)
            kept = True
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text)
            click.echo(f"{target} is written")
    click.echo("Next: systemd-sysusers && systemctl daemon-reload", err=True)
    if kept:
        context.exit(Exit.CONFLICT.value)


def _files(root: Path) -> list[tuple[Path, Path]]:
    """What is installed, and where."""
    system = Path(str(resources.files("shovey_trio") / "system"))
    found = []
    for name, place in _PLACES.items():
        source = system / name
        files = sorted(source.iterdir()) if source.is_dir() else [source]
        found += [(file, root / place / file.name) for file in files]
    return found


def _marked(text: bytes) -> bytes:
    return f"{_MARK}{hashlib.sha256(text).hexdigest()}\n".encode() + text


def _is_ours(text: bytes) -> bool:
    return text == _marked(text.partition(b"\n")[2])
