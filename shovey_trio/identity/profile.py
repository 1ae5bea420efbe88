"""A user's client directory: key, certificate, CA and a configuration that ``shovey`` takes as it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from shovey_trio.identity.files import make_secret_directory, write_public, write_secret
from shovey_trio.identity.layout import ClientDirectory

_CONFIGURATION: Final = """\
# Configuration of `shovey` for {label} of organization {organization}.
# Use it by SHOVEY_CONFIG=THIS_FILE, by --config, or as ~/.config/shovey/config.toml (with the files beside it).
[client]
server = "{server}"
# The controller's certificate is checked for this name, whatever address it is reached by.
server_name = "{server_name}"
# Where `shovey login renew` goes.
enroll_server = "{enroll_server}"
# Relative to this file.
ca_file = "ca.crt"
certificate_file = "client.crt"
key_file = "client.key"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientProfile:
    """What a user's client needs. ``server`` and ``enroll_server`` are ``host:port`` of the two listeners."""

    organization: str
    label: str
    server: str
    enroll_server: str
    server_name: str
    ca_certificates: bytes
    certificate: bytes
    private_key: bytes = field(repr=False)


def write_profile(profile: ClientProfile, root: Path) -> ClientDirectory:
    """Writes the directory (0700) with all its files; the configuration comes last. Blocking.

    Raises:
        FileExistsError: the directory exists and is not empty.
        OSError: it cannot be written.
    """
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} exists and is not empty")
    make_secret_directory(root)
    directory = ClientDirectory(root)
    write_secret(directory.identity.key, profile.private_key)
    write_public(directory.identity.certificate, profile.certificate)
    write_public(directory.ca_certificate, profile.ca_certificates)
    configuration = _CONFIGURATION.format(
        label=profile.label,
        organization=profile.organization,
        server=profile.server,
        enroll_server=profile.enroll_server,
        server_name=profile.server_name,
    )
    write_public(directory.configuration, configuration.encode())
    return directory
