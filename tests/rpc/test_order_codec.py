"""Orders arrive as they were made; what does not belong to the signed bytes is not believed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import assume, given
from hypothesis import strategies as st

from lab.signing import key_set_of
from shovey_trio.core.jobs.command_input import CommandInput, Secrets
from shovey_trio.core.trust.key_sets import key_id_of
from shovey_trio.core.trust.order_signing import SigningKey, verify_order
from shovey_trio.core.trust.orders import NONCE_BYTES, Order, OrderKind, RefusalReason
from shovey_trio.rpc.convert import order_bytes, signed_order_message, signed_order_value
from shovey_trio.rpc.order_codec import parse_order
from shovey_trio.rpc.signer import ActiveKeySigner
from shovey_trio.v1 import order_pb2

SECRET = "pl4nted-s3cret"
_words = st.text(st.characters(codec="utf-8"), max_size=8)
_maps = st.dictionaries(_words, _words, max_size=3)
_inputs = st.builds(CommandInput, args=_maps, env=_maps, stdin=st.binary(max_size=8), user=_words)


def order(**fields: object) -> Order:
    plain = Order(
        organization="default",
        node="web-1",
        agent_instance="instance",
        job_id="job",
        run_id="run",
        kind=OrderKind.START,
        command="chef-client",
        run_timeout=60.0,
        kill_grace=5.0,
        issued_at=1000.0,
        expires_at=2000.0,
        nonce=bytes(NONCE_BYTES),
        epoch=7,
    )
    return replace(plain, **fields)  # type: ignore[arg-type]  # fields of Order, by name


@pytest.fixture(scope="module")
def key() -> SigningKey:
    private = Ed25519PrivateKey.generate()
    return SigningKey(key_id=key_id_of(private.public_key().public_bytes_raw()), private_key=private, created_at=0.0)


@given(_inputs)
def test_input_arrives_as_it_was_sent(given_input: CommandInput) -> None:
    sent = order(input=given_input)
    assert parse_order(order_bytes(sent)) == sent


@given(_inputs, _inputs)
def test_orders_with_different_inputs_have_different_bytes(one: CommandInput, other: CommandInput) -> None:
    assume(one != other)
    assert order_bytes(order(input=one)) != order_bytes(order(input=other))


def test_secrets_travel_beside_the_signed_bytes_and_are_bound_to_them(key: SigningKey) -> None:
    secrets = Secrets(env={"TOKEN": SECRET}, stdin=SECRET.encode())
    sent = order(input=CommandInput(args={"a": "b"}, secrets=secrets))
    signer = ActiveKeySigner({"default": key})
    signed = signed_order_value(signed_order_message(signer.sign(sent)))
    assert verify_order(signed, key_set_of("default", key), 0.0) is None
    assert SECRET.encode() not in signed.order
    assert SECRET not in repr(signed)
    assert parse_order(signed.order, signed.sealed) == sent

    other = signer.sign(order(input=CommandInput(secrets=Secrets(env={"TOKEN": "another"}))))
    for sealed in (b"", other.sealed, signed.sealed + b"\0", signed.sealed[:-1]):
        assert parse_order(signed.order, sealed) is RefusalReason.BAD_SIGNATURE
    # Signed twice, a secret has two digests: nobody can compare them, or guess.
    assert signer.sign(sent).sealed != signed.sealed


def test_secrets_beside_an_order_that_has_none_are_refused() -> None:
    assert parse_order(order_bytes(order()), b"\x0a\x01x") is RefusalReason.MALFORMED


def test_file_is_still_set_aside() -> None:
    message = order_pb2.Order.FromString(order_bytes(order()))
    message.file.name = "x"
    assert parse_order(message.SerializeToString()) is RefusalReason.UNSUPPORTED_FIELD


@given(st.binary(max_size=100), st.binary(max_size=20))
def test_any_bytes_are_an_order_or_a_reason(raw: bytes, sealed: bytes) -> None:
    assert isinstance(parse_order(raw, sealed), Order | RefusalReason)
