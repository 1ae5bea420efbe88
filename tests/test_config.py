from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from shovey_agent.config import AgentSettings, load_agent_settings
from shovey_trio.config.operator import ClientSettings, find_client_file, load_client_settings
from shovey_trio.config.reference import describe_settings, render_configuration
from shovey_trio.config.server import ServerSettings, find_config_file, load_server_settings
from shovey_trio.config.sources import parse_overrides
from shovey_trio.config.types import format_duration, format_size, parse_duration, parse_size
from shovey_trio.core.addresses import join_address, reachable_address, split_address
from shovey_trio.core.errors import ConfigurationInvalid
from shovey_trio.core.jobs.model import LinkMode


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_each_source_outweighs_those_before_it(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", '[jobs]\nkill_grace = "1s"\nacceptance = "2s"\norder_attempts = 9\n')
    environ = {"SHOVEY_TRIO__JOBS__ACCEPTANCE": "3m", "SHOVEY_TRIO__JOBS__ORDER_ATTEMPTS": "8"}
    settings = load_server_settings(file, environ=environ, overrides=parse_overrides(["jobs.order_attempts=7"]))
    assert (settings.jobs.kill_grace, settings.jobs.acceptance, settings.jobs.order_attempts) == (1.0, 180.0, 7)
    assert settings.jobs.default_run_timeout == 3600.0


def test_all_errors_of_a_file_are_reported_at_once_with_key_value_and_expectation(tmp_path: Path) -> None:
    file = write(
        tmp_path / "c.toml",
        """
        [server]
        organization = "Acme Corp"
        control_listen = "nowhere"
        [jobs]
        kill_grase = "10s"
        acceptance = "soon"
        order_attempts = 0
        [limit]
        [presence]
        acceptance = 1
        """,
    )
    with pytest.raises(ConfigurationInvalid) as caught:
        load_server_settings(file, environ={"SHOVEY_TRIO__LOG__LEVEL": "loud"})
    lines = caught.value.message.splitlines()
    assert lines[0] == f"{file}: 8 errors in the configuration"
    for expected in (
        'server.organization = "Acme Corp": expected 1 to 64 lower-case letters',
        'server.control_listen = "nowhere": expected HOST:PORT',
        "jobs.kill_grase: unknown key, did you mean jobs.kill_grace?",
        'jobs.acceptance = "soon": expected a duration such as "90s"',
        "jobs.order_attempts = 0: expected greater than 0",
        "limit: unknown key, did you mean limits?",
        "presence.acceptance: unknown key, did you mean jobs.acceptance?",
        "log.level = \"loud\" (from SHOVEY_TRIO__LOG__LEVEL): expected 'debug'",
    ):
        assert any(line.strip().startswith(expected) for line in lines), (expected, lines)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("[jobs\n", "not TOML"), ("[jobs]\nkill_grace = 1\nkill_grace = 2\n", "not TOML"), ("x = '\udcff'", "not TOML")],
)
def test_a_file_that_is_no_toml_says_where(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigurationInvalid, match=problem):
        load_server_settings(file, environ={})


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationInvalid, match="No such file"):
        load_server_settings(tmp_path / "missing.toml", environ={})


def test_sections_are_checked_across_keys() -> None:
    with pytest.raises(ConfigurationInvalid, match=r"jobs: default_run_timeout is longer"):
        load_server_settings(None, environ={}, overrides=parse_overrides(["jobs.default_run_timeout=48h"]))
    same = parse_overrides(["server.control_listen=127.0.0.1:1", "server.enroll_listen=127.0.0.1:1"])
    with pytest.raises(ConfigurationInvalid, match="same address"):
        load_server_settings(None, environ={}, overrides=same)
    free = parse_overrides(["server.control_listen=127.0.0.1:0", "server.enroll_listen=127.0.0.1:0"])
    assert load_server_settings(None, environ={}, overrides=free).server.control_listen.endswith(":0")


def test_a_section_given_as_a_value_is_an_error_not_a_crash() -> None:
    for environ in ({"SHOVEY_TRIO__JOBS": "1"}, {"SHOVEY_TRIO__JOBS": "1", "SHOVEY_TRIO__JOBS__KILL_GRACE": "x"}):
        with pytest.raises(ConfigurationInvalid, match="jobs"):
            load_server_settings(None, environ=environ)


@pytest.mark.parametrize("text", ["jobs.kill_grace", "=1", ""])
def test_a_flag_without_key_and_value_is_an_error(text: str) -> None:
    with pytest.raises(ConfigurationInvalid, match=r"section\.key=value"):
        parse_overrides([text])


def test_settings_cannot_be_changed() -> None:
    settings = ServerSettings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.jobs.kill_grace = 1.0  # pydantic refuses it at run time


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", '[server]\ndata_dir = "."\n[store]\npath = "db/x.sqlite3"\n')
    settings = load_server_settings(file, environ={})
    assert settings.directory.ca_key == tmp_path / "ca" / "ca.key"
    assert settings.store_path == tmp_path / "db" / "x.sqlite3"
    assert ServerSettings().store_path == Path("/var/lib/shovey-trio/store.sqlite3")


@pytest.mark.parametrize(
    ("url", "path"),
    [("sqlite:////var/db/x.sqlite3", "/var/db/x.sqlite3"), ("sqlite:///db/x.sqlite3", "db/x.sqlite3")],
)
def test_store_is_named_by_a_url_or_by_a_path(tmp_path: Path, url: str, path: str) -> None:
    by_url = load_server_settings(write(tmp_path / "c.toml", f'[store]\nurl = "{url}"\n'), environ={})
    by_path = load_server_settings(write(tmp_path / "d.toml", f'[store]\npath = "{path}"\n'), environ={})
    assert by_url.store_path == by_path.store_path == tmp_path / path


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ('url = "postgresql://me:secret@db/shovey"', r"postgresql://….*no store on PostgreSQL yet"),
        ('url = "mysql://db/shovey"', r"expected sqlite:////PATH"),
        ('url = "sqlite://"', r"expected sqlite:////PATH"),
        ('url = "sqlite:////a"\npath = "/a"', "url and path both say where the store is"),
    ],
)
def test_url_of_no_store_is_one_error_that_shows_no_password(tmp_path: Path, lines: str, problem: str) -> None:
    with pytest.raises(ConfigurationInvalid, match=problem) as raised:
        _ = load_server_settings(write(tmp_path / "c.toml", f"[store]\n{lines}\n"), environ={}).store_path
    assert "secret" not in raised.value.message


def test_what_is_advertised_defaults_to_what_can_be_reached() -> None:
    def control(listen: str, advertise: str = "") -> str:
        values = (("server.control_listen", listen), ("server.advertise_control", advertise))
        return load_server_settings(None, environ={}, overrides=values).control_address

    assert control("127.0.0.1:1") == "127.0.0.1:1"
    assert control("0.0.0.0:1") == "127.0.0.1:1"
    assert control("[::]:1") == "[::1]:1"
    assert control("0.0.0.0:1", "ctl.example.com:9") == "ctl.example.com:9"
    assert reachable_address("host.example:1") == "host.example:1"


def test_tags_can_be_given_as_a_table_everywhere(tmp_path: Path) -> None:
    file = write(tmp_path / "a.toml", '[agent]\nlink = "on-demand"\n[agent.tags]\nrole = "web"\n')
    settings = load_agent_settings(file, environ={})
    assert (settings.agent.link, settings.agent.tags) == (LinkMode.ON_DEMAND, {"role": "web"})
    assert load_agent_settings(None, environ={"SHOVEY_AGENT__AGENT__TAGS": '{dc = "b"}'}).agent.tags == {"dc": "b"}
    assert load_agent_settings(None, environ={"SHOVEY_AGENT__AGENT__TAGS__DC": "b"}).agent.tags == {"dc": "b"}


@pytest.mark.parametrize(
    "tags", ['{"a b" = "x"}', '{a = "x\\ny"}', "{" + ", ".join(f't{i} = "x"' for i in range(65)) + "}"]
)
def test_tags_that_could_not_be_selected_by_are_refused(tags: str) -> None:
    with pytest.raises(ConfigurationInvalid, match="tag"):
        load_agent_settings(None, environ={"SHOVEY_AGENT__AGENT__TAGS": tags})


def test_an_on_demand_agent_needs_serf() -> None:
    environ = {"SHOVEY_AGENT__AGENT__LINK": "on-demand", "SHOVEY_AGENT__SERF__ENABLED": "false"}
    with pytest.raises(ConfigurationInvalid, match="nothing else could wake the agent"):
        load_agent_settings(None, environ=environ)


def test_the_client_takes_a_directory_for_the_file_in_it(tmp_path: Path) -> None:
    file = write(tmp_path / "config.toml", '[client]\nserver = "ctl:1"\n')
    assert find_client_file(flag=None, environ={"SHOVEY_CONFIG": str(tmp_path)}) == file
    assert find_client_file(flag=file, environ={"SHOVEY_CONFIG": "/elsewhere"}) == file
    own = tmp_path / "shovey"
    own.mkdir()
    assert find_client_file(flag=None, environ={"XDG_CONFIG_HOME": str(tmp_path)}) is None
    write(own / "config.toml", "")
    assert find_client_file(flag=None, environ={"XDG_CONFIG_HOME": str(tmp_path)}) == own / "config.toml"
    settings = load_client_settings(file, environ={"SHOVEY__CLIENT__OUTPUT": "json"})
    assert (settings.client.server, settings.client.output) == ("ctl:1", "json")
    assert settings.client.key_file == tmp_path / "client.key"


def test_the_controllers_file_is_found_by_flag_directory_and_environment(tmp_path: Path) -> None:
    environ = {"SHOVEY_TRIO_CONFIG": str(tmp_path / "env.toml")}
    flag = tmp_path / "flag.toml"
    assert find_config_file(flag=flag, data_dir=tmp_path, environ=environ) == flag
    assert find_config_file(flag=None, data_dir=tmp_path, environ=environ) is None
    named = write(tmp_path / "shovey-trio.toml", "")
    assert find_config_file(flag=None, data_dir=tmp_path, environ=environ) == named
    assert find_config_file(flag=None, data_dir=None, environ=environ) == tmp_path / "env.toml"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("24h", 86_400), ("30d", 2_592_000), ("100ms", 0.1), ("1.5h", 5400), ("7", 7), (7, 7)],
)
def test_durations_are_read_as_seconds(text: object, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "s", "-1s", "1w", "1 h 2 m", -1, True, None, float("nan"), float("inf"), "1e3", [1]]
)
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=10**9))
def test_whole_durations_survive_their_text(seconds: int) -> None:
    assert parse_duration(format_duration(float(seconds))) == seconds


@given(st.integers(min_value=0, max_value=2**50))
def test_sizes_survive_their_text(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize("text", ["", "1MB", "-1", -1, 1.5, True, None])
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("address", "parts"), [("h:1", ("h", 1)), ("127.0.0.1:65535", ("127.0.0.1", 65535)), ("[::1]:0", ("::1", 0))]
)
def test_addresses_are_split_and_joined(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts
    assert join_address(*parts) == address


@pytest.mark.parametrize("address", ["", "h", ":1", "h:", "h:x", "h:65536", "::1:1", "[::1]", "h:-1", "a b:1", "h:٣"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        split_address(address)


@pytest.mark.parametrize("model", [ServerSettings, AgentSettings, ClientSettings])
def test_a_rendered_file_says_every_default_and_its_comments_hold(model: type[BaseModel], tmp_path: Path) -> None:
    text = render_configuration(model, {}, header="x")
    uncommented = "\n".join(
        line.removeprefix("#") if line.startswith("#") and not line.startswith("# ") else line
        for line in text.splitlines()
    )
    file = write(tmp_path / "all.toml", uncommented)
    load = {ServerSettings: load_server_settings, AgentSettings: load_agent_settings}.get(model, load_client_settings)
    loaded = load(file, environ={}).model_dump()
    defaults = load(write(tmp_path / "none.toml", ""), environ={}).model_dump()
    assert loaded == {**defaults, **loaded}
    for section, values in defaults.items():
        for key, value in values.items():
            # Default paths are relative to where the file is for the client, and absolute elsewhere.
            if not isinstance(value, Path):
                assert loaded[section][key] == value, (section, key)
    assert all(setting.meaning for setting in describe_settings(model))


@pytest.mark.parametrize(
    ("rest", "allowed"),
    [
        ({"listen": "127.0.0.1:4545"}, True),
        ({"listen": "[::1]:4545"}, True),
        ({"listen": "localhost:4545"}, True),
        ({"listen": "0.0.0.0:4545"}, False),
        ({"listen": "chef.example:4545"}, False),
        ({"listen": "0.0.0.0:4545", "insecure_http": True}, True),
        ({"listen": "0.0.0.0:4545", "tls_certificate": "/c", "tls_key": "/k"}, True),
        ({"tls_certificate": "/c"}, False),
    ],
)
def test_rest_shim_is_encrypted_or_local_unless_told_otherwise(rest: dict[str, object], allowed: bool) -> None:
    served = {"enabled": True, **rest}
    if allowed:
        ServerSettings.model_validate({"rest": served})
    else:
        with pytest.raises(ValueError, match="rest"):
            ServerSettings.model_validate({"rest": served})


def test_address_of_a_rest_shim_that_is_off_asks_for_no_certificate() -> None:
    assert (
        ServerSettings.model_validate({"rest": {"listen": "0.0.0.0:4545"}}).listeners.keys().isdisjoint({"rest.listen"})
    )


@pytest.mark.parametrize("chef", [{"server_url": "http://chef"}, {"server_url": "chef", "client_name": "a"}])
def test_chef_server_needs_a_url_a_name_and_a_key(chef: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="server_url"):
        ServerSettings.model_validate({"chef": chef})
