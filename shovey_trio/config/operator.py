"""Settings of the operator's client: which controller, as whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from shovey_trio.config.sources import Sources, load_settings
from shovey_trio.config.types import Address, FilePath, OptionalAddress, PositiveDuration, Section
from shovey_trio.core.addresses import join_address, split_address
from shovey_trio.identity.authority import INTERNAL_NAME
from shovey_trio.identity.layout import ClientDirectory
from shovey_trio.identity.user_certificate import UserCertificate, read_user_certificate

ENVIRONMENT_PREFIX: Final = "SHOVEY"
#: Names a configuration file for every command, when no flag does.
CONFIG_VARIABLE: Final = "SHOVEY_CONFIG"
_ENROLL_PORT: Final = 7444


class ClientSection(Section):
    """The controller and the user's certificate."""

    server: Address = Field(default="127.0.0.1:7443", description="control address of the controller")
    server_name: str = Field(
        default=INTERNAL_NAME, description="name the controller's certificate is checked for; empty: as in `server`"
    )
    enroll_server: OptionalAddress = Field(
        default="", description="enroll address of the controller, for `login renew`; empty: port 7444 there"
    )
    ca_file: FilePath = Field(default=Path("ca.crt"), description="PEM, what the controller's certificate chains to")
    certificate_file: FilePath = Field(default=Path("client.crt"), description="PEM, the user's certificate")
    key_file: FilePath = Field(default=Path("client.key"), description="PEM, its key (mode 0600)")
    call_deadline: PositiveDuration = Field(default=30.0, description="how long a call that does not follow may take")
    output: Literal["table", "json", "jsonl", "yaml", "name"] = Field(default="table", description="as `-o`")

    @property
    def enroll_address(self) -> str:
        """Where certificates are renewed."""
        return self.enroll_server or join_address(split_address(self.server)[0], _ENROLL_PORT)


class ClientSettings(Section):
    """All settings of ``shovey``."""

    client: ClientSection = Field(default_factory=ClientSection)

    def read_certificate(self) -> UserCertificate:
        """The user's certificate with its key and CA; blocking. Raises as ``read_user_certificate``."""
        client = self.client
        return read_user_certificate(file=client.certificate_file, key_file=client.key_file, ca_file=client.ca_file)


def load_client_settings(
    file: Path | None, *, environ: Mapping[str, str], overrides: Iterable[tuple[str, object]] = ()
) -> ClientSettings:
    """The client's settings from defaults, ``file``, environment and flags, in this order of weight; blocking.

    Raises:
        ConfigurationInvalid: the message lists everything that is wrong.
    """
    return load_settings(
        ClientSettings, Sources(prefix=ENVIRONMENT_PREFIX, file=file, environ=environ, overrides=tuple(overrides))
    )


def find_client_file(*, flag: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The file named by flag or ``SHOVEY_CONFIG``, or the user's own; a client directory stands for the file in it."""
    named = flag or (Path(environ[CONFIG_VARIABLE]) if environ.get(CONFIG_VARIABLE) else None)
    if named is not None:
        return ClientDirectory(named).configuration if named.is_dir() else named
    base = Path(environ["XDG_CONFIG_HOME"]) if environ.get("XDG_CONFIG_HOME") else Path.home() / ".config"
    own = ClientDirectory(base / "shovey").configuration
    return own if own.exists() else None
