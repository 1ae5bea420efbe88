"""Who may do what, as kept beside the store: what was written comes back, and nothing else is believed."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shovey_trio.core.audit.records import AuditBroken, canonical_json
from shovey_trio.core.chef.principals import ChefPrincipal, ChefPrincipalKind
from shovey_trio.core.jobs.model import Grant, Role, User
from shovey_trio.core.trust.explain import ExplainRule, ExplainStep, Verdict, overall
from shovey_trio.core.trust.rights import RIGHTS_DOMAIN, RevokedCertificate, Rights, decode_rights, encode_rights

KEY = Ed25519PrivateKey.generate()
RIGHTS = Rights(
    revoked=(RevokedCertificate(serial="1", organization="o", subject="user/a", expires_at=2.0),),
    users=(User(name="a", organization="o", role=Role.OPERATOR, created_at=1.0),),
    grants=(Grant(organization="o", user="a", command="c*", nodes="web-*"),),
    chef_principals=(
        ChefPrincipal(
            organization="o",
            kind=ChefPrincipalKind.NODE,
            name="n",
            role=Role.NODE,
            public_key="pem",
            created_at=1.0,
        ),
    ),
)


def changed(**changes: object) -> bytes:
    return json.dumps({**json.loads(encode_rights(RIGHTS, KEY)), **changes}).encode()


@pytest.mark.parametrize("rights", [RIGHTS, Rights()])
def test_rights_come_back_as_they_were_kept(rights: Rights) -> None:
    found = decode_rights(encode_rights(rights, KEY), KEY.public_key())
    assert found == rights
    assert all(type(user.role) is Role for user in found.users)
    assert all(type(one.role) is Role and type(one.kind) is ChefPrincipalKind for one in found.chef_principals)


def test_the_signature_is_over_their_own_domain_and_canonical_text() -> None:
    fields = json.loads(encode_rights(RIGHTS, KEY))
    signed = RIGHTS_DOMAIN + canonical_json(fields["rights"]).encode()
    KEY.public_key().verify(base64.b64decode(fields["signature"]), signed)


def test_rights_that_were_changed_or_signed_by_another_are_broken() -> None:
    more = json.loads(encode_rights(RIGHTS, KEY))["rights"]
    more["users"][0]["role"] = "admin"
    for bad in (changed(rights=more), encode_rights(RIGHTS, Ed25519PrivateKey.generate())):
        with pytest.raises(AuditBroken, match="changed"):
            decode_rights(bad, KEY.public_key())


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"{}",
        b"[]",
        b"[" * 100_000,
        changed(signature=7),
        changed(signature="*" + json.loads(encode_rights(RIGHTS, KEY))["signature"]),
        canonical_json(
            {
                "rights": {},
                "signature": base64.b64encode(KEY.sign(RIGHTS_DOMAIN + canonical_json({}).encode())).decode(),
            }
        ).encode(),
    ],
)
def test_what_are_no_rights_cannot_be_read(bad: bytes) -> None:
    with pytest.raises(AuditBroken, match="cannot be read"):
        decode_rights(bad, KEY.public_key())


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        ([], Verdict.ALLOWED),
        ([Verdict.ALLOWED, Verdict.ALLOWED], Verdict.ALLOWED),
        ([Verdict.ALLOWED, Verdict.UNKNOWN], Verdict.UNKNOWN),
        ([Verdict.UNKNOWN, Verdict.REFUSED, Verdict.ALLOWED], Verdict.REFUSED),
    ],
)
def test_one_rule_that_refuses_decides_and_one_that_is_unknown_leaves_it_open(
    verdicts: list[Verdict], whole: Verdict
) -> None:
    steps = [ExplainStep(rule=ExplainRule.ROLE, verdict=verdict, detail="") for verdict in verdicts]
    assert overall(steps) is whole
