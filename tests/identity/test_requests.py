from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.errors import InvalidCertificateRequest
from shovey_trio.identity.requests import (
    MAX_REQUEST_BYTES,
    KeyUnreadable,
    load_private_key,
    make_private_key,
    make_request,
    private_key_pem,
    read_request,
)


def csr(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)


def test_a_request_yields_the_key_it_was_made_with() -> None:
    key = make_private_key()
    assert read_request(make_request(key)) == key.public_key()


def test_a_private_key_survives_its_pem() -> None:
    key = make_private_key()
    assert load_private_key(private_key_pem(key)).private_numbers() == key.private_numbers()


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(ec.generate_private_key(ec.SECP384R1()), id="P-384"),
        pytest.param(ec.generate_private_key(ec.SECP256K1()), id="secp256k1"),
        pytest.param(rsa.generate_private_key(65537, 2048), id="RSA"),
        pytest.param(ed25519.Ed25519PrivateKey.generate(), id="Ed25519"),
    ],
)
def test_only_keys_on_p256_are_certified(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey,
) -> None:
    with pytest.raises(InvalidCertificateRequest, match="must be ECDSA P-256"):
        read_request(csr(key))


def test_a_request_with_somebody_elses_key_is_refused() -> None:
    ours, theirs = make_private_key(), make_private_key()
    point, stolen = (
        key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint) for key in (ours, theirs)
    )
    request = make_request(ours)
    assert request.count(point) == 1
    with pytest.raises(InvalidCertificateRequest, match="not signed by its own key"):
        read_request(request.replace(point, stolen))


@given(st.binary(max_size=300))
def test_garbage_is_an_invalid_request(data: bytes) -> None:
    with pytest.raises(InvalidCertificateRequest):
        read_request(data)


def test_an_oversized_request_is_refused_unparsed() -> None:
    with pytest.raises(InvalidCertificateRequest, match="more than"):
        read_request(make_request(make_private_key()) + bytes(MAX_REQUEST_BYTES))


def test_private_keys_of_other_kinds_or_with_a_passphrase_are_unreadable() -> None:
    key = make_private_key()
    encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    other = ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for pem in (encrypted, other, b"", b"-----BEGIN PRIVATE KEY-----"):
        with pytest.raises(KeyUnreadable):
            load_private_key(pem)
