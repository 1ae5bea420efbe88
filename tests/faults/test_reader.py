"""A reader that is slower than the run."""

from __future__ import annotations

from dataclasses import replace

import trio

from lab.memory_store import MemoryStore
from shovey_trio.core.jobs.model import Job, OutputChunk, Run, StreamName
from shovey_trio.core.jobs.states import JobState, RunState
from shovey_trio.nursery.watch import CommitHub, follow_output

JOB = Job(
    id="01a3185c-5000-7224-aae6-b12288580d84",
    organization="default",
    command="work",
    quorum="1",
    run_timeout=60,
    kill_grace=10,
    created_by="user/ops",
    created_at=1.0,
    updated_at=1.0,
    state=JobState.RUNNING,
    run_total=1,
)
RUN = Run(id="run", job_id=JOB.id, organization="default", node="n", created_at=1, updated_at=1, nonce=bytes(16))


async def test_a_reader_that_is_still_being_given_output_when_the_run_ends_is_let_go(autojump_clock: object) -> None:
    store, hub = MemoryStore(), CommitHub(max_watchers=1)
    store.on_commit(hub.committed)
    await store.create_job(JOB, [RUN], None)
    running = replace(RUN, state=RunState.RUNNING)
    await store.write_run(running)
    chunk = OutputChunk(stream=StreamName.STDOUT, position=0, stream_offset=0, read_at=1.0, data=b"all of it")
    await store.append_output(running, [chunk])
    got: list[bytes] = []

    async def slowly(piece: OutputChunk) -> None:
        got.append(piece.data)
        # The run ends, and nothing is ever committed again, before the reader asks for more.
        await store.write_run(replace(running, state=RunState.SUCCEEDED, finished_at=2.0))
        await store.write_job(replace(JOB, state=JobState.COMPLETE, finished_at=2.0))

    with trio.fail_after(5):
        await follow_output(
            store=store,
            hub=hub,
            who="",
            organization="default",
            job_id=JOB.id,
            node="n",
            stream=None,
            offset=0,
            follow=True,
            chunk=slowly,
        )
    assert got == [b"all of it"]
