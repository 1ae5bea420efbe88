"""The model of serf's gossip behind emulated clusters, against what was measured of real agents and simulated."""

from __future__ import annotations

import random

import pytest

from lab.gossip import STEP, Gossip


def times(gossip: Gossip) -> list[float]:
    """When each target has heard, in order, until nothing is under way."""
    at, heard = 0.0, list[float]()
    while gossip.depth:
        at += STEP
        for _, names in gossip.step():
            heard += [at] * len(names)
    return heard


def test_one_query_reaches_a_thousand_members_within_a_good_second() -> None:
    gossip = Gossip(1_001, random.Random(1))
    gossip.add([f"n{number}" for number in range(1_000)], size=900)
    heard = times(gossip)
    assert len(heard) == 1_000
    assert 0.3 <= heard[500] <= 0.8
    assert 0.7 <= heard[-1] <= 1.3


@pytest.mark.parametrize(("queries", "median", "late"), [(10, 0.74, 1.08), (50, 1.67, 4.4), (200, 5.9, 20.8)])
def test_bursts_spread_about_as_among_a_hundred_real_agents(queries: int, median: float, late: float) -> None:
    gossip = Gossip(101, random.Random(1))
    for number in range(queries):
        gossip.add([f"n{number}"], size=676)
    heard = times(gossip)
    assert len(heard) == queries
    assert heard[queries // 2] == pytest.approx(median, rel=0.5)
    assert heard[int(queries * 0.95)] == pytest.approx(late, rel=0.5)


def test_above_what_gossip_carries_the_queue_grows() -> None:
    def depth(rate: int) -> int:
        gossip = Gossip(1_001, random.Random(1))
        for step in range(round(30 / STEP)):
            if step % round(1 / STEP / rate) == 0:
                gossip.add(["n1"], size=1_000)
            gossip.step()
        return gossip.depth

    assert depth(1) <= 5
    assert depth(4) >= 50


def test_a_query_for_some_reaches_each_of_them_once() -> None:
    gossip = Gossip(301, random.Random(7))
    names = [f"n{number}" for number in range(20)]
    gossip.add(names, size=1_000)
    heard: list[str] = []
    while gossip.depth:
        for _, found in gossip.step():
            heard += found
    assert sorted(heard) == sorted(names)
