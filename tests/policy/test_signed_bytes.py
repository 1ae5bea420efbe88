"""A signature covers one thing: no two different orders share signed bytes, nor does an order with anything else."""

from __future__ import annotations

import importlib
import json
import pkgutil
from dataclasses import fields, replace
from itertools import combinations, permutations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import assume, given
from hypothesis import strategies as st

import shovey_trio
from shovey_trio.core.audit import head as audit_head
from shovey_trio.core.audit import records as audit
from shovey_trio.core.jobs.command_input import CommandInput
from shovey_trio.core.serf import doorbell
from shovey_trio.core.trust import key_sets, order_signing
from shovey_trio.core.trust.key_sets import KeySet, KeySetRefused, KeyState, PublicKey, key_id_of, verify_key_set
from shovey_trio.core.trust.order_signing import ORDER_DOMAIN, SigningKey, sign_order, verify_order
from shovey_trio.core.trust.orders import Order, OrderKind, RefusalReason, SignedOrder
from shovey_trio.identity.renewal import RENEW_DOMAIN
from shovey_trio.rpc import order_codec
from shovey_trio.rpc.convert import order_bytes
from shovey_trio.shovey.protocol.wire import PayloadMalformed, parse_order, signed_text

_KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
_PUBLIC = _KEY.public_key().public_bytes_raw()
_SIGNING = SigningKey(key_id=key_id_of(_PUBLIC), private_key=_KEY, created_at=0.0)
_KEYS = KeySet(
    organization="default",
    serial=1,
    keys=(PublicKey(public_bytes=_PUBLIC, state=KeyState.ACTIVE, not_before=0),),
)

# Few letters, so that what stands in one field often stands in another one too.
_WORDS = st.text(alphabet="ab\n\0: =é", max_size=6)
_PAIRS = st.dictionaries(_WORDS, _WORDS, max_size=3)
# The wire counts microseconds, up to a year; doubles of this size hold them exactly.
_MICROSECONDS = st.integers(min_value=0, max_value=366 * 86_400 * 10**6).map(lambda micros: micros / 1e6)
_TIMES = st.integers(min_value=0, max_value=4 * 10**9)
_ORDERS = st.builds(
    Order,
    organization=_WORDS,
    node=_WORDS,
    agent_instance=_WORDS,
    job_id=_WORDS,
    run_id=_WORDS,
    kind=st.sampled_from(OrderKind),
    command=_WORDS,
    run_timeout=_MICROSECONDS,
    kill_grace=_MICROSECONDS,
    issued_at=_TIMES.map(float),
    expires_at=_TIMES.map(float),
    nonce=st.binary(max_size=4),
    epoch=st.integers(min_value=0, max_value=2**64 - 1),
    input=st.builds(CommandInput, args=_PAIRS, env=_PAIRS, stdin=st.binary(max_size=4), user=_WORDS),
)


def _in_microseconds(order: Order) -> Order:
    """The order with its durations as the wire counts them; a sum of doubles is off by its last bit."""
    return replace(order, run_timeout=round(order.run_timeout * 1e6), kill_grace=round(order.kill_grace * 1e6))


_TEXTS = ("organization", "node", "agent_instance", "job_id", "run_id", "command")


@given(_ORDERS)
def test_what_a_node_reads_is_what_was_signed_in_every_field(order: Order) -> None:
    """So no two orders share bytes: whatever shares them is read as the same order."""
    read = order_codec.parse_order(order_bytes(order))
    assert isinstance(read, Order)
    assert _in_microseconds(read) == _in_microseconds(order)


@given(_ORDERS, _ORDERS)
def test_two_orders_that_differ_share_no_signed_bytes(one: Order, other: Order) -> None:
    assert (order_bytes(one) == order_bytes(other)) == (one == other)


@given(_ORDERS, _ORDERS, st.sampled_from([field.name for field in fields(Order)]))
def test_each_field_alone_makes_other_bytes(order: Order, other: Order, field: str) -> None:
    changed = replace(order, **{field: getattr(other, field)})
    assume(changed != order)
    signed = replace(sign_order(order_bytes(order), _SIGNING), order=order_bytes(changed))
    assert verify_order(signed, _KEYS, 10.0) is RefusalReason.BAD_SIGNATURE


@given(_ORDERS, st.sampled_from(list(permutations(_TEXTS, 2))), st.integers(min_value=1, max_value=6))
def test_what_moves_from_one_field_to_another_makes_other_bytes(
    order: Order, between: tuple[str, str], length: int
) -> None:
    source, target = between
    text = getattr(order, source)
    moved = replace(order, **{source: text[:-length], target: text[-length:] + getattr(order, target)})
    assume(moved != order)
    assert order_bytes(moved) != order_bytes(order)


@given(_ORDERS)
def test_an_argument_is_no_variable_and_standard_input_no_user(order: Order) -> None:
    given_input = order.input
    swapped = replace(order, input=replace(given_input, args=given_input.env, env=given_input.args))
    assert (order_bytes(swapped) == order_bytes(order)) == (given_input.args == given_input.env)


# --- other things that are signed -----------------------------------------------------------------------------


def _domains() -> dict[str, bytes]:
    """Every domain string of the package, found by its name."""
    found = {}
    for module in pkgutil.walk_packages(shovey_trio.__path__, "shovey_trio."):
        if module.name.startswith(("shovey_trio.core.", "shovey_trio.identity.")):
            for name, value in vars(importlib.import_module(module.name)).items():
                if name.endswith("DOMAIN") and isinstance(value, bytes):
                    found[f"{value!r}"] = value
    return found


def test_no_domain_is_the_beginning_of_another() -> None:
    domains = _domains()
    known = (
        ORDER_DOMAIN,
        doorbell.SIGNING_DOMAIN,
        key_sets.KEY_SET_DOMAIN,
        RENEW_DOMAIN,
        audit_head.HEAD_DOMAIN,
        audit.CHAIN_DOMAIN,
    )
    assert set(known) <= set(domains.values())
    for one, other in combinations(domains.values(), 2):
        assert not one.startswith(other)
        assert not other.startswith(one)


@given(st.binary(max_size=200), st.sampled_from(sorted(_domains().values())))
def test_a_signature_over_anything_else_is_none_over_an_order_a_doorbell_or_a_key_set(
    data: bytes, domain: bytes
) -> None:
    signature = _KEY.sign(domain + data)
    as_order = SignedOrder(order=data, signature=signature, key_id=_SIGNING.key_id)
    if domain != order_signing.ORDER_DOMAIN:
        assert verify_order(as_order, _KEYS, 10.0) is RefusalReason.BAD_SIGNATURE
    if domain != doorbell.SIGNING_DOMAIN:
        with pytest.raises(doorbell.DoorbellRefused):
            doorbell.verify(
                data + signature,
                keys={doorbell.short_key_id(_KEY.public_key()): _KEY.public_key()},
                organization="default",
                now=10.0,
                skew=900.0,
            )
    if domain != key_sets.KEY_SET_DOMAIN:
        with pytest.raises(KeySetRefused):
            verify_key_set(signature + data, _PUBLIC, "default")


# --- the old protocol -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "order",
    [
        {"action": "start", "command": "hello", "run_id": "x", "time": "2026-11-22T03:45:56Z", "timeout": "30"},
        {"action": "cancel", "run_id": "x", "time": "2026-11-22T03:45:56Z"},
    ],
    ids=lambda order: order["action"],
)
def test_the_text_of_an_old_order_cannot_be_cut_into_other_fields(order: dict[str, str]) -> None:
    """Its lines are ``key: value``, and nothing forbids a line feed in a value: every way to read them is tried."""
    lines = signed_text(order).decode().split("\n")
    meant = parse_order(json.dumps(order).encode())
    read = 0
    for cuts in range(2 ** (len(lines) - 1)):
        groups = [[lines[0]]]
        for number, line in enumerate(lines[1:]):
            if cuts >> number & 1:
                groups[-1].append(line)
            else:
                groups.append([line])
        for at in range(max(len(group) for group in groups)):
            # The key of a group ends at one of its lines' colons; whatever comes before that is part of the key.
            cut = ["\n".join(group) for group in groups]
            split = [text.split(": ", maxsplit=-1) for text in cut]
            keyed = {
                ": ".join(parts[: min(at, len(parts) - 2) + 1]): ": ".join(parts[min(at, len(parts) - 2) + 1 :])
                for parts in split
            }
            if len(keyed) != len(groups) or signed_text(keyed).decode() != "\n".join(lines):
                continue
            try:
                found = parse_order(json.dumps(keyed).encode())
            except PayloadMalformed:
                continue
            read += 1
            assert found == meant
    assert read >= 1
