from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shovey_trio.core.errors import InvalidRequest
from shovey_trio.core.jobs.model import Role
from shovey_trio.identity.authority import DAY, hosts_of, read_certificates, renew_at
from shovey_trio.identity.bootstrap import AlreadyInitialized, FirstAdmin, SetupOptions, initialize
from shovey_trio.identity.files import FileUnusable, InsecureFile, check_private
from shovey_trio.identity.layout import ClientDirectory, DataDirectory
from shovey_trio.identity.renewal import verify_certificate
from shovey_trio.identity.signing_keys import SigningKeyFile
from shovey_trio.identity.tls import load_controller_tls, renew_listeners_if_due
from shovey_trio.shovey.keys import SCHOB_KEYS

NOW = 1_767_225_600.0
OPTIONS = SetupOptions(
    organization="acme",
    admin="ann",
    hosts=("ctl.example.com",),
    control_address="ctl.example.com:7443",
    enroll_address="ctl.example.com:7444",
    configuration="# settings\n",
    now=NOW,
    key_kinds=(SCHOB_KEYS,),
)


def touch(path: Path, _admin: FirstAdmin) -> None:
    path.touch(mode=0o600)


def set_up(root: Path) -> DataDirectory:
    return initialize(root, OPTIONS, touch)


def test_a_set_up_is_complete_and_closed_to_others(tmp_path: Path) -> None:
    directory = set_up(tmp_path / "data")
    assert directory.root.stat().st_mode & 0o7777 == 0o700
    secrets = [path for path in directory.root.rglob("*") if path.suffix in (".key", ".json", ".sqlite3")]
    assert len(secrets) == 8
    assert all(path.stat().st_mode & 0o7777 == 0o600 for path in secrets)
    assert {path.name for path in directory.root.iterdir()} == {
        "ca", "tls", "signing", "admin", "store.sqlite3", "shovey-trio.toml",
    }  # fmt: skip
    load_controller_tls(directory)
    assert SigningKeyFile(directory.signing_keys("acme")).load("acme").keys.serial == 1


def test_the_first_admin_can_prove_who_it_is(tmp_path: Path) -> None:
    told: list[FirstAdmin] = []

    def populate(path: Path, admin: FirstAdmin) -> None:
        touch(path, admin)
        told.append(admin)

    directory = initialize(tmp_path / "data", OPTIONS, populate)
    client = ClientDirectory(directory.admin)
    tls = load_controller_tls(directory)
    verified = verify_certificate(
        client.identity.certificate.read_bytes(), authorities=tls.trusted, revoked=(), now=NOW
    )
    assert verified.identity.uri == "shovey://acme/user/ann"
    (admin,) = told
    assert (admin.user.role, admin.label, admin.certificate.serial) == (Role.ADMIN, "user/ann", verified.serial)
    assert client.ca_certificate.read_bytes() == tls.ca_pem
    assert 'server = "ctl.example.com:7443"' in client.configuration.read_text()


def test_a_set_up_is_never_overwritten_and_says_what_is_there(tmp_path: Path) -> None:
    directory = set_up(tmp_path / "data")
    before = {path: path.read_bytes() for path in directory.root.rglob("*") if path.is_file()}
    with pytest.raises(AlreadyInitialized, match=r"holds: ca, tls, signing, admin, store\.sqlite3, shovey-trio\.toml"):
        set_up(directory.root)
    assert {path: path.read_bytes() for path in directory.root.rglob("*") if path.is_file()} == before


def test_a_part_of_a_set_up_is_not_touched_either(tmp_path: Path) -> None:
    (tmp_path / "signing").mkdir()
    with pytest.raises(AlreadyInitialized) as caught:
        set_up(tmp_path)
    assert caught.value.details["found"] == "signing"
    assert [path.name for path in tmp_path.iterdir()] == ["signing"]


def test_an_existing_directory_is_used_and_closed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "lost+found").mkdir()
    set_up(tmp_path)
    assert tmp_path.stat().st_mode & 0o7777 == 0o700
    assert (tmp_path / "lost+found").is_dir()


@pytest.mark.parametrize("existed", [True, False])
def test_a_set_up_that_fails_leaves_nothing(tmp_path: Path, existed: bool) -> None:
    root = tmp_path / "data"
    if existed:
        root.mkdir()

    def fail(path: Path, admin: FirstAdmin) -> None:
        touch(path, admin)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        initialize(root, OPTIONS, fail)
    assert list(tmp_path.rglob("*")) == ([root] if existed else [])
    set_up(root)


def test_what_a_closed_store_leaves_beside_it_is_moved_along(tmp_path: Path) -> None:
    def populate(path: Path, admin: FirstAdmin) -> None:
        touch(path, admin)
        path.with_name(path.name + "-wal").write_bytes(b"committed")

    directory = initialize(tmp_path / "data", OPTIONS, populate)
    assert (directory.root / "store.sqlite3-wal").read_bytes() == b"committed"


def test_bad_names_are_refused_before_anything_is_made(tmp_path: Path) -> None:

    with pytest.raises(InvalidRequest):
        initialize(tmp_path / "data", replace(OPTIONS, organization="Acme"), touch)
    with pytest.raises(InvalidRequest):
        initialize(tmp_path / "data", replace(OPTIONS, admin="-rf"), touch)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["ca/ca.key", "tls/control.key", "tls/enroll.key"])
def test_a_key_open_to_others_stops_loading_and_is_named(tmp_path: Path, name: str) -> None:
    directory = set_up(tmp_path / "data")
    (directory.root / name).chmod(0o644)
    with pytest.raises(InsecureFile, match=name):
        load_controller_tls(directory)


def test_a_data_directory_open_to_others_stops_loading(tmp_path: Path) -> None:
    directory = set_up(tmp_path / "data")
    directory.root.chmod(0o711)
    with pytest.raises(InsecureFile, match="chmod 0700"):
        load_controller_tls(directory)


def test_a_missing_certificate_is_named(tmp_path: Path) -> None:
    directory = set_up(tmp_path / "data")
    directory.enroll.certificate.unlink()
    with pytest.raises(FileUnusable, match=r"enroll\.crt"):
        load_controller_tls(directory)


def test_only_the_control_listener_asks_for_client_certificates(tmp_path: Path) -> None:
    tls = load_controller_tls(set_up(tmp_path / "data"))
    assert tls.control.client_ca == tls.ca_pem
    assert tls.enroll.client_ca is None
    assert "PRIVATE KEY" not in repr(tls)


def test_listeners_are_renewed_when_due_with_key_and_names_kept(tmp_path: Path) -> None:
    directory = set_up(tmp_path / "data")
    old = load_controller_tls(directory)
    leaf = read_certificates(old.control.certificate)[0]
    assert renew_listeners_if_due(directory, now=renew_at(leaf) - 1) == ()
    assert load_controller_tls(directory).control == old.control
    assert renew_listeners_if_due(directory, now=renew_at(leaf) + 1) == ("control", "enroll")
    new = load_controller_tls(directory)
    fresh = read_certificates(new.control.certificate)[0]
    assert set(hosts_of(fresh)) == set(hosts_of(leaf))
    assert fresh.not_valid_after_utc.timestamp() >= leaf.not_valid_after_utc.timestamp() + 200 * DAY
    assert new.control.private_key == old.control.private_key


def test_a_host_that_is_new_gets_into_the_certificates_at_once(tmp_path: Path) -> None:
    directory = set_up(tmp_path / "data")
    assert renew_listeners_if_due(directory, hosts=["10.0.0.9"], now=NOW) == ("control", "enroll")
    names = hosts_of(read_certificates(load_controller_tls(directory).enroll.certificate)[0])
    assert {"10.0.0.9", "ctl.example.com"} <= set(names)
    assert renew_listeners_if_due(directory, hosts=["10.0.0.9"], now=NOW) == ()


def test_every_key_and_state_file_must_be_closed_to_others(tmp_path: Path) -> None:
    directory = set_up(tmp_path / "data")
    check_private(directory.private_paths())
    listed = {str(path.relative_to(directory.root)) for path in directory.private_paths()}
    assert listed >= {
        ".", "ca", "tls", "signing", "admin", "ca/ca.key", "tls/control.key", "tls/enroll.key", "signing/acme.json",
        "signing/acme.root.key", "signing/acme.legacy.json", "admin/client.key", "store.sqlite3",
    }  # fmt: skip
    (directory.root / "store.sqlite3-wal").touch(mode=0o600)
    for path in directory.private_paths():
        mode = path.stat().st_mode & 0o777
        path.chmod(mode | 0o040)
        with pytest.raises(InsecureFile, match=rf"{path} has mode 0{mode | 0o040:o}"):
            check_private(directory.private_paths())
        path.chmod(mode)
    check_private(directory.private_paths())
