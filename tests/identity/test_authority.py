from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from shovey_trio.identity.authority import (
    CA_LIFETIME,
    DAY,
    CertificateAuthority,
    CertificateUnreadable,
    create_authority,
    hosts_of,
    listener_hosts,
    read_certificates,
    renew_at,
    serial_of,
)
from shovey_trio.identity.names import Identity, node_identity, parse_identity, user_identity
from shovey_trio.identity.requests import make_private_key, make_request, private_key_pem


def leaf_of(authority: CertificateAuthority, identity: Identity, now: float) -> x509.Certificate:
    issued = authority.issue_client(csr=make_request(make_private_key()), identity=identity, now=now)
    return read_certificates(issued.chain)[0]


def test_nodes_get_90_days_and_users_365(authority: CertificateAuthority, now: float) -> None:
    for identity, days in ((node_identity("acme", "web-1"), 90), (user_identity("acme", "ann"), 365)):
        leaf = leaf_of(authority, identity, now)
        assert leaf.not_valid_after_utc.timestamp() == now + days * DAY
        assert leaf.not_valid_before_utc.timestamp() == now - 900


def test_the_identity_is_the_only_name_and_the_key_is_the_requests(authority: CertificateAuthority, now: float) -> None:
    key = make_private_key()
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier("shovey://acme/user/admin")]), critical=False
        )
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
    issued = authority.issue_client(csr=greedy, identity=node_identity("acme", "web-1"), now=now)
    leaf = read_certificates(issued.chain)[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert parse_identity(names.get_values_for_type(x509.UniformResourceIdentifier)) == node_identity("acme", "web-1")
    assert len(list(names)) == 1
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert leaf.public_key() == key.public_key()
    assert "root" not in leaf.subject.rfc4514_string()


def test_a_client_certificate_passes_strict_path_validation_as_a_client_only(
    authority: CertificateAuthority, now: float
) -> None:
    leaf = leaf_of(authority, node_identity("acme", "web-1"), now)
    policy = PolicyBuilder().store(Store([authority.certificate])).time(leaf.not_valid_before_utc)
    assert policy.build_client_verifier().verify(leaf, []).chain[0] == leaf
    with pytest.raises(VerificationError):
        policy.build_server_verifier(x509.DNSName("shovey-trio.internal")).verify(leaf, [])


def test_a_listener_certificate_passes_strict_path_validation_as_a_server_only(
    authority: CertificateAuthority, now: float
) -> None:
    issued = authority.issue_listener(csr=make_request(make_private_key()), hosts=["ctl.example.com"], now=now)
    leaf = read_certificates(issued.chain)[0]
    policy = PolicyBuilder().store(Store([authority.certificate])).time(leaf.not_valid_before_utc)
    for name in ("ctl.example.com", "localhost", "shovey-trio.internal"):
        policy.build_server_verifier(x509.DNSName(name)).verify(leaf, [])
    with pytest.raises(VerificationError):
        policy.build_client_verifier().verify(leaf, [])
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_listener_names_are_normalized_and_named_once() -> None:
    hosts = listener_hosts(["CTL.example.com", "0:0:0:0:0:0:0:1", "10.0.0.1", "ctl.example.com"])
    assert hosts == ("shovey-trio.internal", "localhost", "127.0.0.1", "::1", "ctl.example.com", "10.0.0.1")


def test_the_names_of_a_listener_can_be_read_back(authority: CertificateAuthority, now: float) -> None:
    issued = authority.issue_listener(csr=make_request(make_private_key()), hosts=["a.example", "10.1.2.3"], now=now)
    assert set(hosts_of(read_certificates(issued.chain)[0])) == set(listener_hosts(["a.example", "10.1.2.3"]))


def test_the_ca_lasts_ten_years_and_may_not_make_another_ca(authority: CertificateAuthority, now: float) -> None:
    constraints = authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    assert authority.certificate.not_valid_after_utc.timestamp() == now + CA_LIFETIME


def test_no_leaf_outlives_its_ca(authority: CertificateAuthority, now: float) -> None:
    late = now + CA_LIFETIME - DAY
    issued = authority.issue_client(
        csr=make_request(make_private_key()), identity=node_identity("acme", "web-1"), now=late
    )
    assert issued.expires_at == now + CA_LIFETIME
    assert read_certificates(issued.chain)[0].not_valid_after_utc.timestamp() == issued.expires_at


def test_renewal_is_due_after_two_thirds_of_a_life(authority: CertificateAuthority, now: float) -> None:
    leaf = leaf_of(authority, node_identity("acme", "web-1"), now)
    life = 90 * DAY + 900
    assert renew_at(leaf) == pytest.approx(now - 900 + life * 2 / 3)


def test_serials_are_hex_and_never_the_same(authority: CertificateAuthority, now: float) -> None:
    leaves = [leaf_of(authority, node_identity("acme", "web-1"), now) for _ in range(20)]
    serials = {serial_of(leaf) for leaf in leaves}
    assert len(serials) == 20
    assert {int(serial, 16) for serial in serials} == {leaf.serial_number for leaf in leaves}


def test_an_authority_is_loaded_only_with_its_own_key(authority: CertificateAuthority, now: float) -> None:
    loaded = CertificateAuthority.from_pem(authority.pem, private_key_pem(authority.private_key))
    assert loaded.certificate == authority.certificate
    other = create_authority(organization="acme", key=make_private_key(), now=now)
    with pytest.raises(CertificateUnreadable, match="another key"):
        CertificateAuthority.from_pem(authority.pem, private_key_pem(other.private_key))
    for garbage in (b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        with pytest.raises(CertificateUnreadable):
            CertificateAuthority.from_pem(garbage, private_key_pem(authority.private_key))


def test_a_long_name_does_not_overflow_the_subject(authority: CertificateAuthority, now: float) -> None:
    leaf = leaf_of(authority, node_identity("acme", "n" * 128), now)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["shovey://acme/node/" + "n" * 128]


def test_the_private_key_is_not_in_the_repr(authority: CertificateAuthority) -> None:
    assert "private_key" not in repr(authority)
