"""Settings of the controller. Every default stands here and in docs/configuration.md; a test compares the two.

Durations are seconds once read; a file may write ``"90s"``, ``"15m"``, ``"24h"``, ``"30d"``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

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
    resolve_path,
)
from shovey_trio.core.addresses import is_loopback, reachable_address, split_address
from shovey_trio.core.errors import ConfigurationInvalid, InvalidRequest
from shovey_trio.identity.key_places import KeySource, VaultCredentials, VaultOptions
from shovey_trio.identity.layout import DataDirectory
from shovey_trio.identity.names import check_organization
from shovey_trio.store.opening import sqlite_path

ENVIRONMENT_PREFIX: Final = "SHOVEY_TRIO"
#: Names a configuration file for every command, when no flag does.
CONFIG_VARIABLE: Final = "SHOVEY_TRIO_CONFIG"
DEFAULT_DATA_DIR: Final = Path("/var/lib/shovey-trio")


def _organization(value: str) -> str:
    try:
        return check_organization(value)
    except InvalidRequest as exc:
        raise ValueError(exc.message.partition(": ")[2]) from exc


class ServerSection(Section):
    """Who we are and where we listen."""

    organization: Annotated[str, AfterValidator(_organization)] = Field(
        default="default", description="the organization this controller serves"
    )
    data_dir: FilePath = Field(default=DEFAULT_DATA_DIR, description="keys, certificates and the store")
    control_listen: Address = Field(
        default="127.0.0.1:7443", description="listener with mutual TLS: agents and clients"
    )
    enroll_listen: Address = Field(default="127.0.0.1:7444", description="listener for Enroll and Renew")
    advertise_control: OptionalAddress = Field(
        default="", description="control address as agents and clients are told it; empty: as `control_listen`"
    )
    advertise_enroll: OptionalAddress = Field(
        default="", description="enroll address as new nodes are told it; empty: as `enroll_listen`"
    )
    drain_timeout: Duration = Field(default=30.0, description="on TERM, how long open calls may take to end")


def _resolve_url(value: str, info: ValidationInfo) -> str:
    """A relative path in a URL is relative to the configuration file, as any other path is.

    Any other URL is kept as it is: it may hold a password, and what is wrong here would be shown with its value.
    """
    if not value.startswith("sqlite:"):
        return value
    try:
        return f"sqlite:///{resolve_path(sqlite_path(value), info)}"
    except ConfigurationInvalid as exc:
        raise ValueError(exc.message) from None


StoreUrl = Annotated[str, AfterValidator(_resolve_url)]


class StoreSection(Section):
    """Where state is durable."""

    url: StoreUrl = Field(default="", description="where it is: `sqlite:////PATH`; empty: as `path` says")
    path: FilePath | Literal[""] = Field(
        default="", description="SQLite file; empty: `store.sqlite3` in `server.data_dir`"
    )

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        if self.url and self.path:
            raise ValueError("url and path both say where the store is; keep url")
        return self


class SerfSection(Section):
    """The serf agent beside the controller."""

    enabled: bool = Field(default=True, description="use serf: doorbells, membership, presence")
    address: Address = Field(default="127.0.0.1:7373", description="RPC address of the serf agent")
    auth_key_file: FilePath | Literal[""] = Field(
        default="", description="file with serf's RPC authentication key; empty: none"
    )
    node_name: str = Field(
        default="", description="serf name of the agent, `organization:name`; empty: it is asked for it"
    )
    query_size_limit: Annotated[int, Field(ge=512, le=1366)] = Field(
        default=1024, description="largest query, as in the serf agent's own configuration"
    )
    event_announce: bool = Field(
        default=False, description="tell of jobs and nodes by serf user events: at most one a second, some are dropped"
    )


class JobsSection(Section):
    """How long the parts of a job may take."""

    default_run_timeout: PositiveDuration = Field(
        default=3600.0, description="time a run may take when the job does not say"
    )
    max_run_timeout: PositiveDuration = Field(default=86_400.0, description="longest time a job may ask for")
    kill_grace: Duration = Field(default=10.0, description="between TERM and KILL, when the job does not say")
    acceptance: PositiveDuration = Field(
        default=60.0, description="time a node has to accept an order, all attempts together"
    )
    order_attempts: PositiveInt = Field(default=3, description="how often a node without a stream is rung")
    reconnect_grace: PositiveDuration = Field(
        # A verdict is final, so it waits for what is not a crash: a physical server's reboot takes up to 10 minutes.
        default=900.0,
        description="silence after which an `unknown` run becomes `crashed`",
    )

    @model_validator(mode="after")
    def _default_within_maximum(self) -> Self:
        if self.default_run_timeout > self.max_run_timeout:
            raise ValueError("default_run_timeout is longer than max_run_timeout")
        return self


class PresenceSection(Section):
    """When a node counts as up."""

    stream_lost_after: Duration = Field(
        default=15.0, description="an attached node is down this long after its stream broke"
    )
    on_demand_fresh: PositiveDuration = Field(
        default=900.0,
        description="an on-demand node is up this long after it pulled or answered, while serf says alive",
    )


class LegacySection(Section):
    """Old nodes (schob), which take signed orders over serf and report over HTTP."""

    enabled: bool = Field(default=False, description="send orders to nodes added with `--legacy`; needs serf")


class RestSection(Section):
    """The REST shim: what knife-shove and old nodes speak."""

    enabled: bool = Field(default=False, description="serve Shovey's HTTP protocol")
    listen: Address = Field(default="127.0.0.1:4545", description="listener of the shim")
    tls_certificate: FilePath | Literal[""] = Field(
        default="", description="PEM certificate chain of the listener; empty: plain HTTP"
    )
    tls_key: FilePath | Literal[""] = Field(default="", description="PEM key of the listener")
    insecure_http: bool = Field(
        default=False, description="serve plain HTTP on an address that is not loopback, such as behind a TLS proxy"
    )
    clock_skew: PositiveDuration = Field(
        default=900.0, le=43_200.0, description="how far a signed request's time may be from ours, either way"
    )
    default_run_timeout: PositiveDuration = Field(
        default=300.0, description="time a run may take when a client of the shim does not say"
    )
    cancel_wait: Duration = Field(
        default=240.0,
        description="longest that a cancel waits: it does for the kill grace and 15 s, or until all have ended",
    )
    stream_hold: Duration = Field(
        default=20.0, description="how long a reader of a stream that is not complete is kept waiting"
    )
    max_connections: PositiveInt = Field(default=1000, description="open connections; further ones get 503")
    max_connections_per_peer: PositiveInt = Field(
        default=500, description="open connections of one address, such as a proxy's; further ones get 503"
    )
    max_body: ByteSize = Field(default=1_000_000, description="body of a request; larger ones get 413")
    head_timeout: PositiveDuration = Field(default=10.0, description="time for a request's headers, else 408")
    body_timeout: PositiveDuration = Field(default=60.0, description="time for a request's body, else 408")
    idle_timeout: PositiveDuration = Field(default=30.0, description="silence after which a connection is closed")
    write_timeout: PositiveDuration = Field(
        default=30.0, description="time without progress after which a client that does not read is cut off"
    )

    @model_validator(mode="after")
    def _encrypted_or_local(self) -> Self:
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("tls_certificate and tls_key belong together")
        if self.enabled and not self.tls_certificate and not self.insecure_http and not is_loopback(self.listen):
            raise ValueError("off loopback, set tls_certificate and tls_key, or insecure_http = true")
        return self


class ChefSection(Section):
    """A Chef server (or goiardi) that knows who is who; for the REST shim."""

    server_url: str = Field(
        default="", description="its URL, without `/organizations/ORG`; empty: only the keys stored here count"
    )
    organization: str = Field(
        default="", description="organization there; empty for a server without organizations, such as goiardi 0.11"
    )
    client_name: str = Field(default="", description="admin client or user that the controller asks as")
    key_file: FilePath | Literal[""] = Field(default="", description="its private key, PEM")
    ca_file: FilePath | Literal[""] = Field(
        default="", description="CA certificates of the server; empty: the system's"
    )
    cache: PositiveDuration = Field(default=300.0, description="how long an answer is believed")
    negative_cache: PositiveDuration = Field(default=15.0, description="how long it is believed that there is nobody")
    timeout: PositiveDuration = Field(default=10.0, description="time for a question")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.server_url and not self.server_url.startswith(("http://", "https://")):
            raise ValueError("server_url must begin with http:// or https://")
        if self.server_url and not (self.client_name and self.key_file):
            raise ValueError("server_url needs client_name and key_file")
        return self


class GrpcSection(Section):
    """How gRPC is served."""

    backend: Literal["trio-asyncio", "native"] = Field(
        default="native", description="without effect since 0.2: there is one engine; old files may go on setting it"
    )


class RetentionSection(Section):
    """What is deleted, and when."""

    jobs: PositiveDuration = Field(default=30 * 86_400.0, description="finished jobs with runs, events and output")
    statuses: PositiveDuration = Field(default=30 * 86_400.0, description="presence history of nodes")
    audit: PositiveDuration = Field(default=400 * 86_400.0, description="audit records; what is left still verifies")
    sweep_every: PositiveDuration = Field(default=3600.0, description="how often old history is looked for")


class SecretsSection(Section):
    """Where private keys come from."""

    signing_keys: KeySource = Field(
        default=KeySource.FILES, description="keys that sign orders: `files`, `environment` or `vault`"
    )
    legacy_keys: KeySource = Field(
        default=KeySource.FILES, description="RSA keys for old nodes: `files`, `environment` or `vault`"
    )

    def source(self, kind: str) -> KeySource:
        """Where keys of a kind are: ``signing``, or ``identity.key_kinds.KeyKind.word``."""
        return KeySource(getattr(self, f"{kind}_keys"))


class VaultSection(Section):
    """A Vault (or OpenBao) with secrets of KV version 2; used where `[secrets]` says so."""

    address: str = Field(default="", description="its URL, `https://…`; always verified")
    ca_file: FilePath | Literal[""] = Field(default="", description="CA certificates of it; empty: the system's")
    namespace: str = Field(default="", description="namespace; empty: none")
    mount: str = Field(default="secret", description="where the KV engine is mounted")
    path: str = Field(
        default="shovey-trio", description="secrets are `PATH/ORG/signing` and `PATH/ORG/legacy`, field `document`"
    )
    token_file: FilePath | Literal[""] = Field(default="", description="file (0600) with a token, which is renewed")
    role_id: str = Field(default="", description="role id of AppRole, in the place of a token")
    secret_id_file: FilePath | Literal[""] = Field(default="", description="file (0600) with the role's secret id")
    approle_mount: str = Field(default="approle", description="where AppRole is mounted")
    timeout: PositiveDuration = Field(default=10.0, description="time for a question")
    refresh: PositiveDuration = Field(default=30.0, description="how often the keys are read again")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.address:
            return self
        if not self.address.startswith("https://"):
            raise ValueError("address must begin with https://")
        if bool(self.token_file) == bool(self.role_id and self.secret_id_file):
            raise ValueError("either token_file, or role_id and secret_id_file")
        return self

    @property
    def options(self) -> VaultOptions:
        """As the client takes it."""
        return VaultOptions(
            address=self.address,
            ca_file=str(self.ca_file),
            namespace=self.namespace,
            mount=self.mount,
            approle_mount=self.approle_mount,
            timeout=self.timeout,
        )

    @property
    def credentials(self) -> VaultCredentials:
        """As the client takes them."""
        return VaultCredentials(
            token_file=self.token_file or None, role_id=self.role_id, secret_id_file=self.secret_id_file or None
        )


class LimitsSection(Section):
    """Bounds on what is in memory and on what strangers can cost."""

    max_live_jobs: PositiveInt = Field(default=2000, description="jobs that are not finished")
    max_live_runs: PositiveInt = Field(default=50_000, description="runs of those jobs")
    max_watchers: PositiveInt = Field(default=2000, description="open WatchJob and following ReadOutput calls")
    max_watchers_per_caller: PositiveInt = Field(default=200, description="those of one user, however many commands")
    max_attached: PositiveInt = Field(default=20_000, description="attached agents")
    output_buffer: ByteSize = Field(
        default=64 * 2**20, description="output received and not yet durable, all runs together"
    )
    max_run_output: ByteSize = Field(
        default=257 * 2**20,
        description="output taken of one run: a MiB more than its agent's runs.output_cap; the rest counts as dropped",
    )
    max_message: ByteSize = Field(default=4 * 2**20, description="one gRPC message")
    max_calls_per_caller: PositiveInt = Field(
        default=500, description="calls at a time of one user or node, over all its connections"
    )
    max_stranger_calls: PositiveInt = Field(
        default=2000,
        description="calls at a time without a client certificate, half of them streams; a twentieth is one address's",
    )
    max_streams: PositiveInt = Field(default=2000, description="calls at a time on one gRPC connection")
    max_connections: PositiveInt = Field(default=25_000, description="connections to one gRPC listener")
    enroll_per_minute: PositiveInt = Field(
        default=60, description="certificates renewed, all nodes together; a tenth of them one node's"
    )
    failed_auth_per_minute: PositiveInt = Field(
        default=30, description="failed proofs of one name at one address (ten times as many of all names there)"
    )


class ServerSettings(Section):
    """All settings of the controller."""

    server: ServerSection = Field(default_factory=ServerSection)
    store: StoreSection = Field(default_factory=StoreSection)
    serf: SerfSection = Field(default_factory=SerfSection)
    jobs: JobsSection = Field(default_factory=JobsSection)
    presence: PresenceSection = Field(default_factory=PresenceSection)
    legacy: LegacySection = Field(default_factory=LegacySection)
    rest: RestSection = Field(default_factory=RestSection)
    chef: ChefSection = Field(default_factory=ChefSection)
    grpc: GrpcSection = Field(default_factory=GrpcSection)
    retention: RetentionSection = Field(default_factory=RetentionSection)
    secrets: SecretsSection = Field(default_factory=SecretsSection)
    vault: VaultSection = Field(default_factory=VaultSection)
    limits: LimitsSection = Field(default_factory=LimitsSection)
    log: LogSection = Field(default_factory=LogSection)

    @model_validator(mode="after")
    def _listeners_differ(self) -> Self:
        same = self.server.control_listen == self.server.enroll_listen
        if same and split_address(self.server.control_listen)[1] != 0:
            raise ValueError("server.control_listen and server.enroll_listen are the same address")
        return self

    @model_validator(mode="after")
    def _legacy_needs_serf(self) -> Self:
        if self.legacy.enabled and not self.serf.enabled:
            raise ValueError("legacy.enabled needs serf.enabled = true: nothing else reaches old nodes")
        return self

    @model_validator(mode="after")
    def _vault_is_named(self) -> Self:
        if KeySource.VAULT in (self.secrets.signing_keys, self.secrets.legacy_keys) and not self.vault.address:
            raise ValueError("[secrets] names vault, and vault.address is empty")
        return self

    @property
    def directory(self) -> DataDirectory:
        return DataDirectory(self.server.data_dir)

    @property
    def store_path(self) -> Path:
        """The store's file.

        Raises:
            ConfigurationInvalid: the URL names another kind of store.
        """
        return sqlite_path(self.store.url) if self.store.url else self.store.path or self.directory.store

    @property
    def listeners(self) -> Mapping[str, str]:
        """The addresses that are listened on, by the settings that name them."""
        server = {
            "server.control_listen": self.server.control_listen,
            "server.enroll_listen": self.server.enroll_listen,
        }
        return {**server, "rest.listen": self.rest.listen} if self.rest.enabled else server

    @property
    def control_address(self) -> str:
        """What agents and clients are told to connect to."""
        return self.server.advertise_control or reachable_address(self.server.control_listen)

    @property
    def enroll_address(self) -> str:
        """What new nodes are told to connect to."""
        return self.server.advertise_enroll or reachable_address(self.server.enroll_listen)


def load_server_settings(
    file: Path | None, *, environ: Mapping[str, str], overrides: Iterable[tuple[str, object]] = ()
) -> ServerSettings:
    """The controller's settings from defaults, ``file``, environment and flags, in this order of weight; blocking.

    Raises:
        ConfigurationInvalid: the message lists everything that is wrong.
    """
    return load_settings(
        ServerSettings,
        Sources(prefix=ENVIRONMENT_PREFIX, file=file, environ=environ, overrides=tuple(overrides)),
    )


def find_config_file(*, flag: Path | None, data_dir: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The configuration file that a command uses: named by flag, by data directory, by environment, or the default's.

    A file that was named by flag or environment is returned whether it exists or not; its absence is an error then.
    """
    if flag is not None:
        return flag
    if data_dir is not None:
        named = DataDirectory(data_dir).configuration
        return named if named.exists() else None
    if environ.get(CONFIG_VARIABLE):
        return Path(environ[CONFIG_VARIABLE])
    candidates = (Path("/etc/shovey-trio/shovey-trio.toml"), DataDirectory(DEFAULT_DATA_DIR).configuration)
    return next((path for path in candidates if path.exists()), None)
