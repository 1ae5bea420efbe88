from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.errors import InvalidRequest, Unauthenticated
from shovey_trio.identity.names import (
    Identity,
    PrincipalKind,
    check_name,
    check_organization,
    node_identity,
    parse_identity,
    user_identity,
)

NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._:-]{0,127}", fullmatch=True)
ORGANIZATIONS = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}", fullmatch=True)


@given(ORGANIZATIONS, st.sampled_from(PrincipalKind), NAMES)
def test_every_identity_survives_its_uri(organization: str, kind: PrincipalKind, name: str) -> None:
    identity = Identity(organization=organization, kind=kind, name=name)
    assert parse_identity(["https://elsewhere.example/", identity.uri]) == identity


def test_labels_are_as_principals_are_stored() -> None:
    assert node_identity("acme", "web-1").label == "node/web-1"
    assert user_identity("acme", "ann").label == "user/ann"


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["https://acme/node/web-1"],
        ["shovey://acme/node/web-1", "shovey://acme/node/web-2"],
        ["shovey://acme/node/web-1", "SHOVEY://acme/user/admin"],
        ["shovey://acme/admin/web-1"],
        ["shovey://acme/node/"],
        ["shovey://acme/node/a/b"],
        ["shovey://acme/node/web-1?role=admin"],
        ["shovey://ACME/node/web-1"],
        ["shovey:///node/web-1"],
        ["shovey://acme/node/web%2d1"],
        ["shovey://acme/node/web-1\n"],
        ["SHOVEY://acme/node/web-1"],
    ],
)
def test_anything_but_exactly_one_wellformed_identity_is_unauthenticated(uris: list[str]) -> None:
    with pytest.raises(Unauthenticated):
        parse_identity(uris)


@pytest.mark.parametrize("name", ["", "-rf", ".ssh", "../x", "a/b", "a b", "a\n", "näme", "a" * 129, "a@b", "\x00"])
def test_names_that_could_be_an_option_a_path_or_another_name_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_name(name, "node")
    assert caught.value.details == {"field": "node"}


@pytest.mark.parametrize("name", ["", "Acme", "a:b", "-a", "_a", "a.b", "a" * 65, "a\n"])
def test_organizations_have_no_colon_no_upper_case_and_no_path(name: str) -> None:
    with pytest.raises(InvalidRequest):
        check_organization(name)
