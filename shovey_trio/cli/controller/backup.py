"""``shovey-trio backup`` and ``shovey-trio restore``."""

from __future__ import annotations

from pathlib import Path

import click

from shovey_trio.cli.controller.offline_store import host_actor
from shovey_trio.cli.controller.options import load_from_options, source_options, with_settings
from shovey_trio.config.server import ServerSettings

_FILE = click.Path(path_type=Path, dir_okay=False, resolve_path=True)


@click.command()
@click.argument("file", type=_FILE)
@with_settings
def backup(settings: ServerSettings, file: Path) -> None:
    """Write the store, keys, certificates and settings to FILE; the controller may be serving.

    FILE has every key that lies in the data directory: keep it as closed as that. A configuration that lies elsewhere
    and keys in Vault or the environment are not in it.
    """
    from shovey_trio.controller.backup import write_backup

    made = write_backup(settings, file)
    click.echo(f"{file}: {file.stat().st_size / 2**20:.1f} MiB, the store and {len(made.files)} files, {made.words}")


@click.command()
@click.argument("file", type=_FILE)
@source_options
def restore(file: Path, *, config: Path | None, data_dir: Path | None, assignments: tuple[str, ...]) -> None:
    """Put the backup in FILE back; the controller must not be serving.

    The store becomes that of the backup, and the one that is there is kept beside it. Keys and settings are put back
    where nothing is set up, as on a new host; otherwise they stay as they are. Enrolment tokens are void, what was
    revoked since stays revoked, and runs that the backup does not know the end of are asked for and not started again.
    """
    from shovey_trio.controller.restore import restore_backup

    def load() -> ServerSettings:
        return load_from_options(config, data_dir, assignments)

    done = restore_backup(file, load, host_actor("").label)
    click.echo(f"{done.store}: restored, {done.backup.words}")
    if done.files:
        click.echo(f"put back beside it: {', '.join(done.files)}")
    rights = "as they were last" if done.accepted.rights_kept else "as in the backup"
    click.echo(
        f"users, grants and revocations are {rights}; enrolment tokens are void; {done.accepted.runs} runs unknown"
    )
    if done.aside is not None:
        click.echo(f"what was there is {done.aside}: delete it when all is well")
    click.echo("now start the controller: shovey-trio serve")
