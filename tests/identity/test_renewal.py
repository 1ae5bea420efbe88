from __future__ import annotations

from dataclasses import dataclass

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.errors import InvalidCertificateRequest, Unauthenticated
from shovey_trio.identity.authority import DAY, CertificateAuthority, create_authority, read_certificates, serial_of
from shovey_trio.identity.names import Identity, node_identity, user_identity
from shovey_trio.identity.renewal import (
    RENEWAL_GRACE,
    VerifiedCertificate,
    prove_possession,
    verify_certificate,
    verify_renewal,
)
from shovey_trio.identity.requests import make_private_key, make_request

WEB = node_identity("acme", "web-1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A node with its key and certificate, ready to renew."""

    key: ec.EllipticCurvePrivateKey
    chain: bytes
    serial: str
    expires_at: float


def make_peer(authority: CertificateAuthority, now: float, identity: Identity = WEB) -> Peer:
    key = make_private_key()
    issued = authority.issue_client(csr=make_request(key), identity=identity, now=now)
    return Peer(key=key, chain=issued.chain, serial=issued.serial, expires_at=issued.expires_at)


def renew(
    peer: Peer, authority: CertificateAuthority, now: float, *, revoked: tuple[str, ...] = ()
) -> VerifiedCertificate:
    csr = make_request(make_private_key())
    return verify_renewal(
        certificate=peer.chain,
        csr=csr,
        proof=prove_possession(peer.key, csr),
        authorities=[authority.certificate],
        revoked=revoked,
        now=now,
    )


def test_a_valid_certificate_may_be_renewed(authority: CertificateAuthority, now: float) -> None:
    peer = make_peer(authority, now)
    verified = renew(peer, authority, now + 60 * DAY)
    assert (verified.identity, verified.serial) == (WEB, peer.serial)


def test_an_expired_certificate_may_be_renewed_for_90_days_and_no_longer(
    authority: CertificateAuthority, now: float
) -> None:
    peer = make_peer(authority, now)
    assert renew(peer, authority, peer.expires_at + RENEWAL_GRACE).serial == peer.serial
    with pytest.raises(Unauthenticated) as caught:
        renew(peer, authority, peer.expires_at + RENEWAL_GRACE + 1)
    assert caught.value.details["cause"] == "expired"


def test_expiry_has_no_grace_outside_renewal(authority: CertificateAuthority, now: float) -> None:
    peer = make_peer(authority, now)
    authorities = [authority.certificate]
    verify_certificate(peer.chain, authorities=authorities, revoked=(), now=peer.expires_at)
    with pytest.raises(Unauthenticated, match="expired"):
        verify_certificate(peer.chain, authorities=authorities, revoked=(), now=peer.expires_at + 1)


def test_a_revoked_certificate_is_never_renewed(authority: CertificateAuthority, now: float) -> None:
    peer = make_peer(authority, now)
    with pytest.raises(Unauthenticated) as caught:
        renew(peer, authority, now, revoked=("00", peer.serial))
    assert caught.value.details["cause"] == "revoked"


def test_the_proof_must_be_by_the_old_key(authority: CertificateAuthority, now: float) -> None:
    peer = make_peer(authority, now)
    thief = Peer(key=make_private_key(), chain=peer.chain, serial=peer.serial, expires_at=peer.expires_at)
    with pytest.raises(Unauthenticated) as caught:
        renew(thief, authority, now)
    assert caught.value.details["cause"] == "bad_proof"


def test_a_proof_is_good_for_one_request_and_one_purpose(authority: CertificateAuthority, now: float) -> None:
    peer = make_peer(authority, now)
    csr, other = make_request(make_private_key()), make_request(make_private_key())
    without_domain = peer.key.sign(csr, ec.ECDSA(hashes.SHA256()))
    for proof in (prove_possession(peer.key, other), without_domain, b"", b"\x30\x00"):
        with pytest.raises(Unauthenticated):
            verify_renewal(
                certificate=peer.chain,
                csr=csr,
                proof=proof,
                authorities=[authority.certificate],
                revoked=(),
                now=now,
            )


def test_a_bad_request_is_refused_even_with_a_good_proof(authority: CertificateAuthority, now: float) -> None:
    peer = make_peer(authority, now)
    with pytest.raises(InvalidCertificateRequest):
        verify_renewal(
            certificate=peer.chain,
            csr=b"junk",
            proof=prove_possession(peer.key, b"junk"),
            authorities=[authority.certificate],
            revoked=(),
            now=now,
        )


def test_another_authority_of_the_same_name_is_not_ours(authority: CertificateAuthority, now: float) -> None:
    impostor = create_authority(organization="acme", key=make_private_key(), now=now)
    assert impostor.certificate.subject == authority.certificate.subject
    with pytest.raises(Unauthenticated) as caught:
        renew(make_peer(impostor, now), authority, now)
    assert caught.value.details["cause"] == "not_ours"


def test_any_of_several_authorities_will_do(authority: CertificateAuthority, now: float) -> None:
    new = create_authority(organization="acme", key=make_private_key(), now=now)
    peer = make_peer(authority, now)
    both = [new.certificate, authority.certificate]
    assert verify_certificate(peer.chain, authorities=both, revoked=(), now=now).identity == WEB


def test_a_listeners_certificate_is_nobodys_identity(authority: CertificateAuthority, now: float) -> None:
    issued = authority.issue_listener(csr=make_request(make_private_key()), hosts=[], now=now)
    with pytest.raises(Unauthenticated) as caught:
        verify_certificate(issued.chain, authorities=[authority.certificate], revoked=(), now=now)
    assert caught.value.details["cause"] == "not_a_client"


def test_the_ca_itself_is_nobodys_identity(authority: CertificateAuthority, now: float) -> None:
    with pytest.raises(Unauthenticated):
        verify_certificate(authority.pem, authorities=[authority.certificate], revoked=(), now=now)


def test_a_certificate_from_the_future_is_not_valid_yet(authority: CertificateAuthority, now: float) -> None:
    peer = make_peer(authority, now + 365 * DAY)
    with pytest.raises(Unauthenticated) as caught:
        verify_certificate(peer.chain, authorities=[authority.certificate], revoked=(), now=now)
    assert caught.value.details["cause"] == "not_yet_valid"


def test_users_are_told_from_nodes(authority: CertificateAuthority, now: float) -> None:
    ann = user_identity("acme", "ann")
    verified = renew(make_peer(authority, now, ann), authority, now)
    assert verified.identity == ann


@given(st.binary(max_size=200))
def test_garbage_is_unauthenticated(data: bytes) -> None:
    with pytest.raises(Unauthenticated):
        verify_certificate(data, authorities=[], revoked=(), now=0.0)


def test_a_changed_bit_in_the_certificate_is_noticed(authority: CertificateAuthority, now: float) -> None:
    peer = make_peer(authority, now)
    leaf = read_certificates(peer.chain)[0]
    assert serial_of(leaf) == peer.serial
    forged = x509.load_pem_x509_certificate(peer.chain).public_bytes(Encoding.DER).replace(b"web-1", b"web-2")
    with pytest.raises(Unauthenticated) as caught:
        verify_certificate(
            x509.load_der_x509_certificate(forged).public_bytes(Encoding.PEM),
            authorities=[authority.certificate],
            revoked=(),
            now=now,
        )
    assert caught.value.details["cause"] == "not_ours"
