"""What a node thinks of an order whose signature is good."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.trust.orders import MAX_CLOCK_SKEW, NodeIdentity, Order, OrderKind, RefusalReason, judge_order

NOW = 1_800_000_000.0
ORDER = Order(
    organization="default",
    node="web-1",
    agent_instance="i-1",
    job_id="job",
    run_id="run",
    kind=OrderKind.START,
    command="work",
    run_timeout=60.0,
    kill_grace=10.0,
    issued_at=NOW,
    expires_at=NOW + 60,
    nonce=b"n" * 16,
    epoch=7,
)
IDENTITY = NodeIdentity(organization="default", node="web-1", agent_instance="i-1")


def judge(*, now: float = NOW, skew: float = 0.0, **changes: Any) -> RefusalReason | None:
    return judge_order(replace(ORDER, **changes), identity=IDENTITY, controller_now=now, lowest_epoch=7, skew=skew)


@pytest.mark.parametrize("kind", [OrderKind.START, OrderKind.CANCEL])
def test_a_fresh_order_for_this_node_is_acted_on(kind: OrderKind) -> None:
    assert judge(kind=kind) is None
    assert judge(kind=kind, epoch=8) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"organization": "other"}, RefusalReason.OTHER_ORGANIZATION),
        ({"node": "web-2"}, RefusalReason.OTHER_NODE),
        ({"agent_instance": "i-2"}, RefusalReason.OTHER_INSTANCE),
        ({"kind": OrderKind.RESERVE}, RefusalReason.UNSUPPORTED_KIND),
        ({"kind": OrderKind.COMMIT}, RefusalReason.UNSUPPORTED_KIND),
        ({"kind": OrderKind.RELEASE}, RefusalReason.UNSUPPORTED_KIND),
        ({"nonce": b"short"}, RefusalReason.MALFORMED),
        ({"run_id": ""}, RefusalReason.MALFORMED),
        ({"run_timeout": -1.0}, RefusalReason.MALFORMED),
        ({"kill_grace": -1.0}, RefusalReason.MALFORMED),
        ({"epoch": 6}, RefusalReason.OLD_EPOCH),
        ({"expires_at": NOW - 1}, RefusalReason.EXPIRED),
        ({"issued_at": NOW + MAX_CLOCK_SKEW + 1}, RefusalReason.FUTURE_DATED),
    ],
)
def test_every_defect_has_its_reason(changes: dict[str, Any], reason: RefusalReason) -> None:
    assert judge(**changes) is reason


@pytest.mark.parametrize("changes", [{"run_timeout": 0.0}, {"kill_grace": 0.0}])
def test_no_time_at_all_is_not_malformed(changes: dict[str, Any]) -> None:
    assert judge(**changes) is None


def test_whom_an_order_is_for_is_judged_before_what_it_says() -> None:
    assert judge(node="web-2", nonce=b"", epoch=0, expires_at=0.0) is RefusalReason.OTHER_NODE


@pytest.mark.parametrize("skew", [0.0, 5.0])
def test_the_time_window_is_closed_at_both_ends_and_wider_by_the_skew(skew: float) -> None:
    end, begin = NOW + 60 + skew, NOW - MAX_CLOCK_SKEW - skew
    assert judge(now=end, skew=skew) is None
    assert judge(now=end + 0.001, skew=skew) is RefusalReason.EXPIRED
    assert judge(now=begin, skew=skew) is None
    assert judge(now=begin - 0.001, skew=skew) is RefusalReason.FUTURE_DATED


@given(late=st.floats(-1000, 1000), skew=st.floats(0, 900))
def test_an_order_expires_exactly_when_it_does_by_any_clock_within_the_skew(late: float, skew: float) -> None:
    expired = judge(now=NOW + 60 + late, skew=skew) is RefusalReason.EXPIRED
    assert expired is (NOW + 60 + skew < NOW + 60 + late)
