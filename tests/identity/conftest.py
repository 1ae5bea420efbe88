"""One authority for the tests that do not change it: making keys is cheap, but not free."""

from __future__ import annotations

import pytest

from shovey_trio.identity.authority import CertificateAuthority, create_authority
from shovey_trio.identity.requests import make_private_key

# 2026-01-01; every test passes its own time, so none depends on today.
NOW = 1_767_225_600.0


@pytest.fixture(scope="session")
def authority() -> CertificateAuthority:
    return create_authority(organization="acme", key=make_private_key(), now=NOW)


@pytest.fixture
def now() -> float:
    return NOW
