"""An order's bytes: made by the controller, read by the agent, who believes nothing it does not know."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.orders import Order, OrderKind, RefusalReason
from shovey_trio.rpc.convert import order_bytes
from shovey_trio.rpc.order_codec import parse_order
from shovey_trio.v1 import order_pb2

orders = st.builds(
    Order,
    organization=st.text(max_size=9),
    node=st.text(max_size=9),
    agent_instance=st.text(max_size=9),
    job_id=st.text(max_size=9),
    run_id=st.text(max_size=9),
    kind=st.sampled_from(OrderKind),
    command=st.text(max_size=9),
    run_timeout=st.integers(0, 10**6).map(float),
    kill_grace=st.integers(0, 600).map(float),
    issued_at=st.integers(0, 2**32).map(float),
    expires_at=st.integers(0, 2**32).map(float),
    nonce=st.binary(max_size=20),
    epoch=st.integers(0, 2**63),
)


@given(orders)
def test_an_order_is_read_as_it_was_written_and_always_to_the_same_bytes(order: Order) -> None:
    assert parse_order(order_bytes(order)) == order
    assert order_bytes(order) == order_bytes(order)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_order_or_a_reason(raw: bytes) -> None:
    assert isinstance(parse_order(raw), Order | RefusalReason)


@given(orders, st.integers(0, 200), st.binary(min_size=1, max_size=4))
def test_damaged_orders_never_raise(order: Order, at: int, junk: bytes) -> None:
    raw = order_bytes(order)
    assert isinstance(parse_order(raw[:at] + junk + raw[at + len(junk) :]), Order | RefusalReason)


def test_an_order_that_asks_for_what_is_not_there_yet_is_refused() -> None:
    message = order_pb2.Order(kind=order_pb2.ORDER_KIND_START)
    message.file.SetInParent()
    assert parse_order(message.SerializeToString()) is RefusalReason.UNSUPPORTED_FIELD


def test_a_field_from_the_future_is_refused() -> None:
    raw = order_pb2.Order(kind=order_pb2.ORDER_KIND_START).SerializeToString() + b"\xf8\x3e\x01"
    assert parse_order(raw) is RefusalReason.UNSUPPORTED_FIELD


@pytest.mark.parametrize("kind", [0, 77])
def test_a_kind_nobody_knows_is_refused(kind: int) -> None:
    message = order_pb2.Order(kind=kind)  # type: ignore[arg-type]  # that is the point
    assert parse_order(message.SerializeToString()) is RefusalReason.UNSUPPORTED_KIND
