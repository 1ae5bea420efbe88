"""Chef's request signing against mixlib's vectors, and everything that must not verify."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.chef.signing import (
    SignatureMalformed,
    SignatureRefused,
    SigningVersion,
    canonical_path,
    canonical_request,
    load_private_key,
    load_public_key,
    read_signature,
    sign_request,
    verify_signature,
)
from shovey_trio.core.errors import InvalidRequest

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent.parent / "golden" / "chef-signing-vectors.json").read_text())
VECTORS: list[dict[str, Any]] = GOLDEN["vectors"]
NOW = datetime.fromisoformat("2026-11-22T03:44:23Z").timestamp()
SKEW = 900.0


@cache
def private_key() -> Any:
    return load_private_key(GOLDEN["private_key"])


@cache
def public_key() -> Any:
    return load_public_key(GOLDEN["public_key"])


def lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def signed(**changes: Any) -> dict[str, str]:
    request: dict[str, Any] = {
        "method": "GET",
        "path": "/shovey/jobs",
        "body": b"",
        "user": "admin",
        "now": NOW,
        "key": private_key(),
        "version": SigningVersion.V1_1,
    }
    return lower(sign_request(**{**request, **changes}))


def accept(headers: Mapping[str, str], *, method: str = "GET", path: str = "/shovey/jobs", body: bytes = b"") -> None:
    """As the server does it; raises when the request is refused."""
    signature = read_signature(headers, body, now=NOW, clock_skew=SKEW)
    verify_signature(signature, method=method, path=path, key=public_key())


def vector_headers(vector: Mapping[str, Any]) -> dict[str, str]:
    return lower(vector["headers"]) | {"x-ops-server-api-version": GOLDEN["server_api_version"]}


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['version']}-{v['method']}-{v['path']}")
def test_recorded_request_verifies_and_signing_it_again_gives_the_same_headers(vector: dict[str, Any]) -> None:
    body = vector["body"].encode()
    accept(vector_headers(vector), method=vector["method"], path=vector["path"], body=body)
    again = sign_request(
        method=vector["method"],
        path=vector["path"],
        body=body,
        user=vector["user"],
        now=NOW,
        key=private_key(),
        version=SigningVersion(vector["version"]),
        server_api_version=GOLDEN["server_api_version"],
    )
    again.pop("X-Ops-Server-Api-Version", None)
    assert again == vector["headers"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['version']}-{v['method']}-{v['path']}")
def test_canonical_text_is_the_recorded_one(vector: dict[str, Any]) -> None:
    headers = vector["headers"]
    assert vector["canonical"] == canonical_request(
        version=SigningVersion(vector["version"]),
        method=vector["method"],
        path=vector["path"],
        content_hash=headers["X-Ops-Content-Hash"],
        timestamp=headers["X-Ops-Timestamp"],
        user=vector["user"],
        server_api_version=GOLDEN["server_api_version"],
    )


@pytest.mark.parametrize("version", SigningVersion)
def test_other_method_path_user_time_or_body_is_refused(version: SigningVersion) -> None:
    headers = signed(version=version)
    accept(headers)
    for changed in ({"method": "PUT"}, {"path": "/shovey/jobs/x"}, {"body": b"{}"}):
        with pytest.raises(SignatureRefused):
            accept(headers, **changed)
    for name, value in (("x-ops-userid", "root"), ("x-ops-timestamp", "2026-11-22T03:44:24Z")):
        with pytest.raises(SignatureRefused):
            accept(headers | {name: value})


@pytest.mark.parametrize(
    ("version", "text"),
    [
        (SigningVersion.V1_0, "failed to verify authorization"),
        (SigningVersion.V1_1, "failed to verify authorization"),
        (SigningVersion.V1_2, "crypto/rsa: verification error"),
        (SigningVersion.V1_3, "crypto/rsa: verification error"),
    ],
)
def test_bad_signature_has_the_text_that_clients_know(version: SigningVersion, text: str) -> None:
    headers = signed(version=version)
    headers["x-ops-authorization-1"] = headers["x-ops-authorization-1"][::-1]
    with pytest.raises(SignatureRefused, match=text) as refused:
        accept(headers)
    assert refused.value.http == 401
    del headers["x-ops-authorization-6"]
    with pytest.raises(SignatureRefused, match=text):
        accept(headers)


def test_path_is_verified_as_on_the_wire_not_decoded() -> None:
    headers = signed(path="/status/node/a%20b/latest")
    accept(headers, path="/status/node/a%20b/latest")
    with pytest.raises(SignatureRefused):
        accept(headers, path="/status/node/a b/latest")


def test_query_is_not_signed() -> None:
    accept(signed(path="/shovey/jobs?a=1"), path="/shovey/jobs?sequence=0")


@pytest.mark.parametrize(
    ("target", "path"),
    [("/", "/"), ("//", "/"), ("/a//b///c/", "/a/b/c"), ("/a/../b", "/a/../b"), ("/a%2F%2Fb/?x=//", "/a%2F%2Fb")],
)
def test_canonical_path(target: str, path: str) -> None:
    assert canonical_path(target) == path


@pytest.mark.parametrize("offset", [-840, 840])
def test_clock_within_the_skew_is_accepted(offset: int) -> None:
    accept(signed(now=NOW + offset))


@pytest.mark.parametrize("offset", [-960, 960])
def test_clock_beyond_the_skew_is_refused(offset: int) -> None:
    with pytest.raises(SignatureRefused, match="check your system's clock"):
        accept(signed(now=NOW + offset))


def test_timestamp_with_offset_is_read_and_verified_as_written() -> None:
    text = "2026-11-22T04:44:23+01:00"
    signature = read_signature(signed() | {"x-ops-timestamp": text}, b"", now=NOW, clock_skew=SKEW)
    assert (signature.signed_at, signature.timestamp) == (NOW, text)


@pytest.mark.parametrize("text", ["yesterday", "2026-11-22", "2026-13-22T03:44:23Z", "0000-01-01T00:00:00Z"])
def test_timestamp_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SignatureRefused, match="timestamp"):
        accept(signed() | {"x-ops-timestamp": text})


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ("", "missing X-Ops-Sign header"),
        ("algorithm=sha256;version=1.0", "Unsupported hashing algorithm 'sha256' specified in X-Ops-Header"),
        ("algorithm=sha512;version=1.3", "Unsupported hashing algorithm 'sha512' specified in X-Ops-Header"),
        ("version=2.0", "Bad version number '2.0' in X-Ops-Header"),
    ],
)
def test_sign_header_that_makes_no_sense_is_malformed(header: str, text: str) -> None:
    with pytest.raises(SignatureMalformed) as malformed:
        accept(signed() | {"x-ops-sign": header})
    assert (malformed.value.message, malformed.value.http) == (text, 400)


@pytest.mark.parametrize(
    ("missing", "text"),
    [("x-ops-content-hash", "no content hash provided"), ("x-ops-timestamp", "no timestamp header provided")],
)
def test_missing_header_is_malformed(missing: str, text: str) -> None:
    headers = signed()
    del headers[missing]
    with pytest.raises(SignatureMalformed, match=text):
        accept(headers)


def test_request_without_a_user_is_refused() -> None:
    headers = signed()
    del headers["x-ops-userid"]
    with pytest.raises(SignatureRefused, match="Failed to authenticate as ''"):
        accept(headers)


def test_authorization_zero_is_ignored() -> None:
    accept(signed() | {"x-ops-authorization-0": "zork"})


@pytest.mark.parametrize("line", ["é", "=", "a", "?" * 60, ""])
def test_authorization_that_is_not_base64_is_refused(line: str) -> None:
    with pytest.raises(SignatureRefused):
        accept(signed() | {"x-ops-authorization-1": line})


def test_request_on_behalf_of_a_web_interface_is_refused() -> None:
    with pytest.raises(SignatureRefused):
        accept(signed() | {"x-ops-request-source": "web"})


def test_name_too_long_for_version_1_0_is_a_clear_error() -> None:
    accept(signed(user="u" * 300))
    with pytest.raises(InvalidRequest, match=r"1\.1"):
        signed(user="u" * 300, version=SigningVersion.V1_0)


@pytest.mark.parametrize("pem", ["", "zork", GOLDEN["private_key"][:200]])
def test_key_that_is_none_is_an_invalid_request(pem: str) -> None:
    with pytest.raises(InvalidRequest):
        load_public_key(pem)
    with pytest.raises(InvalidRequest):
        load_private_key(pem)


def _public_pem(key: Any) -> str:
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


@pytest.mark.parametrize("bits", [1024, 2048])
def test_a_public_key_of_1024_bits_or_more_is_taken(bits: int) -> None:
    pem = _public_pem(rsa.generate_private_key(public_exponent=65_537, key_size=bits))
    assert load_public_key(f"\n {pem}\n").key_size == bits


def test_a_public_key_that_is_shorter_or_of_another_kind_is_refused() -> None:
    shorter = rsa.RSAPublicNumbers(65_537, 2**1022 + 1).public_key()
    pem = shorter.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    for bad in (pem, _public_pem(ed25519.Ed25519PrivateKey.generate())):
        with pytest.raises(InvalidRequest, match="at least 1024 bits"):
            load_public_key(bad)


@given(
    headers=st.dictionaries(
        st.sampled_from(
            ["x-ops-sign", "x-ops-userid", "x-ops-timestamp", "x-ops-authorization-1", "x-ops-content-hash"]
        ),
        st.text(max_size=80),
    ),
    body=st.binary(max_size=10),
)
def test_no_headers_whatever_verify_or_raise_anything_else(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises((SignatureMalformed, SignatureRefused)):
        accept(signed() | headers | {"x-ops-authorization-2": "AAAA"}, body=body)
