"""The size formula against the figures measured on a real agent, and what is packed by it."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.serf.size import (
    NameFault,
    QueryFrame,
    check_names,
    node_filter_size,
    query_timeout,
    raw_size,
)

_MEASURED = QueryFrame(source_node="default:srv", query_name="shovey", timeout=60, ltime=1)
_NAMES = st.text(min_size=1, max_size=80)


def _old_pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=False, unicode_errors="surrogateescape")
    return packed


@pytest.mark.parametrize(
    ("nodes", "payload"), [(1, 865), (5, 747), (10, 602), (16, 426), (20, 310), (25, 165), (30, 22)]
)
def test_the_largest_payload_beside_names_of_28_characters_is_as_measured(nodes: int, payload: int) -> None:
    names = ["x" * 28] * nodes
    assert _MEASURED.size(payload, names) == 1024
    assert _MEASURED.size(payload + 1, names) > 1024


@pytest.mark.parametrize(("regex", "payload"), [("^x$", 875), ("^(1a|2b|3c)$", 866)])
def test_the_largest_payload_beside_a_tag_filter_is_as_measured(regex: str, payload: int) -> None:
    assert _MEASURED.size(payload, (), {"shard": regex}) == 1024


@given(
    st.lists(_NAMES, max_size=40),
    st.binary(max_size=900),
    _NAMES,
    st.integers(min_value=0, max_value=2**40),
    st.integers(min_value=0, max_value=2**34),
    st.booleans(),
)
def test_the_formula_is_the_length_of_the_encoded_query(  # noqa: PLR0917 - Hypothesis gives them by position
    nodes: list[str], payload: bytes, source: str, ltime: int, timeout_ns: int, ipv6: bool
) -> None:
    frame = QueryFrame(source_node=source, query_name="q", timeout=timeout_ns / 1e9, ltime=ltime, ipv6=ipv6)
    filters = [b"\x00" + _old_pack(nodes)] if nodes else []
    encoded = b"\x05" + _old_pack(
        {
            "LTime": ltime,
            "ID": 2**31,
            "Addr": bytes(16 if ipv6 else 4),
            "Port": 65535,
            "SourceNode": source,
            "Filters": filters,
            "Flags": 1,
            "RelayFactor": 0,
            "Timeout": timeout_ns,
            "Name": "q",
            "Payload": payload,
        }
    )
    assert frame.size(len(payload), nodes) == len(encoded)
    if nodes:
        assert node_filter_size(nodes) == len(filters[0])


@given(st.integers(min_value=0, max_value=1400))
def test_room_is_the_largest_payload_that_fits(limit: int) -> None:
    room = _MEASURED.room(limit)
    if room < 0:
        assert _MEASURED.size(0) > limit
    else:
        assert _MEASURED.size(room) <= limit < _MEASURED.size(room + 1)


@pytest.mark.parametrize(("length", "size"), [(0, 1), (31, 32), (32, 35), (255, 258), (65535, 65538), (65536, 65541)])
def test_a_raw_has_the_head_of_the_old_specification(length: int, size: int) -> None:
    assert raw_size(length) == size


def test_names_that_cannot_be_rung_are_named_with_the_reason() -> None:
    longest = max(n for n in range(1024) if _MEASURED.size(100, ["o:" + "n" * n]) <= 1024)
    names = ["org:ok", "", "org:\udcff", "plain", ":x", "x:", "o:" + "n" * longest, "o:" + "n" * (longest + 1)]
    problems = check_names(names, frame=_MEASURED, payload_size=100)
    assert [(p.name[:6], p.fault, p.excess) for p in problems] == [
        ("", NameFault.EMPTY, 0),
        ("org:\udcff", NameFault.NOT_TEXT, 0),
        ("plain", NameFault.NO_ORGANIZATION, 0),
        (":x", NameFault.NO_ORGANIZATION, 0),
        ("x:", NameFault.NO_ORGANIZATION, 0),
        ("o:nnnn", NameFault.TOO_LONG, 1),
    ]


@pytest.mark.parametrize(("members", "seconds"), [(1, 5), (99, 5), (100, 10), (9_999, 10), (10_000, 16)])
def test_a_query_stays_open_as_long_as_the_cluster_needs(members: int, seconds: float) -> None:
    assert query_timeout(members) == seconds
