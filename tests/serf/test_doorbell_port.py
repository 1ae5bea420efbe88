"""The controller's doorbell: whatever serf does to a query is one kind of failure for a run."""

from __future__ import annotations

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lab.fake_serf import FakeSerfCluster
from shovey_trio.core.errors import SerfUnavailable
from shovey_trio.nursery.clock import WallClock
from shovey_trio.serf.doorbell import SerfDoorbell
from shovey_trio.serf.link import SerfLink, SerfSettings

_JOB = "01a2020e-924f-7bb1-8b24-4640d683f856"


async def test_a_doorbell_that_fits_into_no_query_is_serf_unavailable_and_ends_nothing() -> None:
    # Beside a name like this one there is no room for anything.
    source, limit = "x" * 400, 512
    cluster = FakeSerfCluster(source, "org:a")
    agent = cluster.agent(source)
    link = SerfLink(SerfSettings(open_stream=agent.open_stream))
    key = Ed25519PrivateKey.generate()
    doorbell = SerfDoorbell(link=link, signing_key=lambda *_: key, epoch=1, clock=WallClock(), limit=limit)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.run)
            await nursery.start(link.run)
            await link.wait_connected()
            with pytest.raises(SerfUnavailable):
                await doorbell.ring(organization="org", job_id=_JOB, nodes=["a"])
            nursery.cancel_scope.cancel(reason="the test is over")
