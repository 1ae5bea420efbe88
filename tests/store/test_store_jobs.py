"""Contract: jobs, runs, listings."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import trio

from shovey_trio.core.errors import InvalidToken, NotFound, RequestIdReused
from shovey_trio.core.jobs.model import Job, ProofKind, Run, RunStatus, ToldEnd
from shovey_trio.core.jobs.states import JobState, RunState
from shovey_trio.nursery.route import DOORBELL
from shovey_trio.store.contract import CreatedJob, JobFilter, Store
from shovey_trio.store.sql.failures import StoreConflict

from .conftest import Make

ALL = JobFilter(organization="default")


def ended(run: Run) -> Run:
    """The run with no field left at its default."""
    return replace(
        run,
        agent_instance="0192",
        state=RunState.CANCELLED,
        cause="cancel_requested",
        detail="by user/admin – “now”",
        exit_code=-1,
        signal=15,
        updated_at=run.created_at + 9.000001,
        dispatched_at=run.created_at + 1.1,
        accepted_at=run.created_at + 2.2,
        started_at=run.created_at + 3.3,
        finished_at=run.created_at + 4.4,
        unknown_since=run.created_at + 5.5,
        cancelling=True,
        cancel_reason="user",
        proof=ProofKind.EMPTY_CGROUP,
        route=DOORBELL,
        attempts=3,
        order_expires_at=run.created_at + 6.6,
        dropped_bytes=2**40,
        output_incomplete=True,
        key_id="k-1",
        released_at=run.created_at + 0.5,
        late_report=ToldEnd(state=RunState.FAILED, cause="", exit_code=3, signal=None, reported_at=7.7),
        held_end=ToldEnd(state=RunState.TIMED_OUT, cause="timed_out", exit_code=None, signal=9, reported_at=8.8),
    )


def finished(job: Job, **changes: Any) -> Job:
    """The job with no changing field left at its default."""
    values: dict[str, Any] = {
        "updated_at": job.created_at + 9.9,
        "state": JobState.COMPLETE,
        "cause": "done",
        "detail": "all runs ended",
        "finished_at": job.created_at + 9.9,
        "cancel_requested": True,
        "run_total": 7,
        "epoch": 9,
        "run_counts": {RunState.SUCCEEDED: 5, RunState.FAILED: 2},
    }
    return replace(job, **{**values, **changes})


async def test_created_job_and_runs_are_read_back_as_they_were(store: Store, make: Make) -> None:
    job, runs = make.job(["web-2", "web-1"])
    assert await store.create_job(job, runs, None) == CreatedJob(job=job, created=True)
    assert await store.get_job("default", job.id) == job
    assert await store.get_run("default", job.id, "web-1") == runs[1]
    assert await store.find_run("default", runs[0].id) == runs[0]
    assert await store.count_runs("default", job.id) == {RunState.PENDING: 2}


async def test_every_field_of_job_and_run_survives(store: Store, make: Make) -> None:
    job, [run] = make.job()
    await store.create_job(job, [run], None)
    last_run, last_job = ended(run), finished(job)
    assert all(getattr(last_run, f.name) != f.default for f in fields(Run))
    await store.write_run(last_run)
    await store.write_job(last_job)
    assert await store.get_run("default", job.id, "web-1") == last_run
    assert await store.get_job("default", job.id) == last_job
    snapshot = await store.snapshot_job("default", job.id)
    assert snapshot is not None
    assert (snapshot.job, snapshot.runs) == (last_job, (last_run,))


async def test_a_nonce_that_was_made_anew_is_stored_and_the_end_behind_it_is_as_it_was_written(
    store: Store, make: Make
) -> None:
    job, [run] = make.job()
    await store.create_job(job, [run], None)
    anew = replace(run, nonce=b"another nonce 16", updated_at=run.updated_at + 1)
    await store.write_run(anew)
    assert await store.get_run("default", job.id, "web-1") == anew
    await store.write_run(ended(anew))
    assert await store.get_run("default", job.id, "web-1") == ended(anew)


async def test_an_overview_says_how_far_each_run_is(store: Store, make: Make) -> None:
    job, runs = make.job(["web-2", "web-1"])
    await store.create_job(job, runs, None)
    running = replace(runs[0], state=RunState.RUNNING, updated_at=runs[0].updated_at + 0.000001)
    await store.write_run(running)
    overview = await store.job_overview("default", job.id)
    assert overview is not None
    assert overview.job == job
    assert list(overview.runs) == [
        RunStatus(node="web-1", state=RunState.PENDING, updated_at=runs[1].updated_at),
        RunStatus(node="web-2", state=RunState.RUNNING, updated_at=running.updated_at),
    ]
    assert await store.job_overview("other", job.id) is None
    assert await store.job_overview("default", "nothing") is None


async def test_job_without_runs_is_stored(store: Store, make: Make) -> None:
    job, _ = make.job([])
    await store.create_job(job, [], None)
    assert await store.count_runs("default", job.id) == {}
    assert await store.list_runs("default", job.id, states=frozenset(), limit=5, after="") == ((), "")


async def test_nothing_is_found_in_another_organization(store: Store, make: Make) -> None:
    job, runs = make.job()
    await store.create_job(job, runs, None)
    assert await store.get_job("other", job.id) is None
    assert await store.get_run("other", job.id, "web-1") is None
    assert await store.find_run("other", runs[0].id) is None
    assert await store.snapshot_job("other", job.id) is None
    assert await store.count_runs("other", job.id) == {}
    assert await store.list_runs("other", job.id, states=frozenset(), limit=5, after="") == ((), "")
    assert await store.list_jobs(JobFilter(organization="other"), limit=5, after="") == ((), "")


async def test_same_request_gives_the_first_job_as_it_is_now(store: Store, make: Make) -> None:
    job, runs = make.job()
    await store.create_job(job, runs, make.request())
    running = replace(job, state=JobState.RUNNING)
    await store.write_job(running)
    again, again_runs = make.job()
    assert await store.create_job(again, again_runs, make.request()) == CreatedJob(job=running, created=False)
    assert await store.get_job("default", again.id) is None
    assert await store.find_run("default", again_runs[0].id) is None


async def test_same_request_from_many_tasks_makes_one_job(store: Store, make: Make) -> None:
    answers: list[CreatedJob] = []

    async def create() -> None:
        job, runs = make.job()
        answers.append(await store.create_job(job, runs, make.request()))

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(create)
    assert sum(answer.created for answer in answers) == 1
    assert len({answer.job.id for answer in answers}) == 1
    jobs, _ = await store.list_jobs(ALL, limit=10, after="")
    assert len(jobs) == 1


async def test_job_of_an_earlier_request_is_found_as_it_is_now(store: Store, make: Make) -> None:
    assert await store.find_request(make.request()) is None
    job, runs = make.job()
    await store.create_job(job, runs, make.request())
    running = replace(job, state=JobState.RUNNING)
    await store.write_job(running)
    assert await store.find_request(make.request()) == running
    assert await store.find_request(make.request(principal="user/other")) is None
    with pytest.raises(RequestIdReused):
        await store.find_request(make.request(digest=b"another"))


async def test_request_id_with_another_body_is_refused_and_names_the_job(store: Store, make: Make) -> None:
    job, runs = make.job()
    await store.create_job(job, runs, make.request())
    other, other_runs = make.job()
    with pytest.raises(RequestIdReused) as refused:
        await store.create_job(other, other_runs, make.request(digest=b"another"))
    assert refused.value.details["job_id"] == job.id
    assert await store.get_job("default", other.id) is None


@pytest.mark.parametrize("field", ["organization", "principal", "request_id"])
async def test_request_ids_are_apart_per_organization_and_principal(store: Store, make: Make, field: str) -> None:
    first, first_runs = make.job()
    second, second_runs = make.job()
    await store.create_job(first, first_runs, make.request())
    if field == "organization":
        second = replace(second, organization="other")
    assert (await store.create_job(second, second_runs, make.request(**{field: "other"}))).created


async def test_job_that_cannot_be_stored_leaves_nothing_behind(store: Store, make: Make) -> None:
    job, runs = make.job()
    await store.create_job(job, runs, None)
    other, _ = make.job()
    with pytest.raises(StoreConflict):
        await store.create_job(other, [make.run(other, "web-1"), make.run(other, "web-1")], make.request())
    assert await store.get_job("default", other.id) is None
    retried, retried_runs = make.job()
    assert (await store.create_job(retried, retried_runs, make.request())).created


async def test_write_of_what_is_not_stored_is_refused(store: Store, make: Make) -> None:
    job, [run] = make.job()
    with pytest.raises(NotFound):
        await store.write_job(job)
    with pytest.raises(NotFound):
        await store.write_run(run)
    with pytest.raises(NotFound):
        await store.append_output(run, make.chunks())
    store.write_run_soon(run)
    assert await store.find_run("default", run.id) is None
    assert store.failure == ""


async def test_jobs_are_listed_newest_first_in_pages(store: Store, make: Make) -> None:
    created = [make.job() for _ in range(5)]
    for job, runs in created:
        await store.create_job(job, runs, None)
    newest_first = [job for job, _ in reversed(created)]
    seen: list[Job] = []
    token, sizes = "", []
    while True:
        jobs, token = await store.list_jobs(ALL, limit=2, after=token)
        seen += jobs
        sizes.append(len(jobs))
        if not token:
            break
    assert seen == newest_first
    assert sizes == [2, 2, 1]
    assert await store.list_jobs(ALL, limit=5, after="") == (tuple(newest_first), "")


async def test_job_pages_neither_repeat_nor_skip_while_jobs_are_added(store: Store, make: Make) -> None:
    created = [make.job() for _ in range(4)]
    for job, runs in created:
        await store.create_job(job, runs, None)
    first, token = await store.list_jobs(ALL, limit=2, after="")
    await store.create_job(*make.job(), None)
    second, token = await store.list_jobs(ALL, limit=2, after=token)
    assert [*first, *second] == [job for job, _ in reversed(created)]
    assert token == ""


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (JobFilter(organization="default", states=frozenset({JobState.RUNNING})), [1]),
        (JobFilter(organization="default", states=frozenset({JobState.NEW, JobState.RUNNING})), [3, 2, 1, 0]),
        (JobFilter(organization="default", command="reboot"), [2]),
        (JobFilter(organization="default", created_by="user/other"), [3]),
        (JobFilter(organization="default", command="reboot", created_by="user/other"), []),
        (JobFilter(organization="default", states=frozenset({JobState.NEW}), command="true"), [3, 0]),
        (JobFilter(organization="other"), [4]),
    ],
)
async def test_job_filters(store: Store, make: Make, where: JobFilter, expected: list[int]) -> None:
    jobs = [
        make.job(),
        make.job(state=JobState.RUNNING),
        make.job(command="reboot"),
        make.job(created_by="user/other"),
        make.job(organization="other"),
    ]
    for job, runs in jobs:
        await store.create_job(job, runs, None)
    found, token = await store.list_jobs(where, limit=10, after="")
    assert list(found) == [jobs[index][0] for index in expected]
    assert token == ""
    if expected:
        page, token = await store.list_jobs(where, limit=1, after="")
        assert list(page) == [jobs[expected[0]][0]]
        assert bool(token) == (len(expected) > 1)


@pytest.mark.parametrize("token", ["x", "AAAA", "é", "=" * 9, "A" * 40])
async def test_page_token_that_was_not_given_is_refused(store: Store, make: Make, token: str) -> None:
    job, runs = make.job()
    await store.create_job(job, runs, None)
    with pytest.raises(InvalidToken):
        await store.list_jobs(ALL, limit=1, after=token)
    with pytest.raises(InvalidToken):
        await store.list_runs("default", job.id, states=frozenset(), limit=1, after=token)
    with pytest.raises(InvalidToken):
        await store.list_node_statuses("default", "web-1", limit=1, after=token)


async def test_page_token_serves_only_its_own_listing(store: Store, make: Make) -> None:
    for _ in range(2):
        await store.create_job(*make.job(), None)
    _, token = await store.list_jobs(ALL, limit=1, after="")
    with pytest.raises(InvalidToken):
        await store.list_jobs(JobFilter(organization="other"), limit=1, after=token)
    with pytest.raises(InvalidToken):
        await store.list_jobs(JobFilter(organization="default", command="true"), limit=1, after=token)
    with pytest.raises(InvalidToken):
        await store.list_node_statuses("default", "web-1", limit=1, after=token)


async def test_runs_are_listed_by_node_in_pages_and_by_state(store: Store, make: Make) -> None:
    job, runs = make.job(["web-3", "web-1", "web-2", "web-10"])
    await store.create_job(job, runs, None)
    failed = replace(runs[0], state=RunState.FAILED, exit_code=1)
    await store.write_run(failed)
    by_node = sorted([failed, *runs[1:]], key=lambda run: run.node)
    first, token = await store.list_runs("default", job.id, states=frozenset(), limit=3, after="")
    rest, end = await store.list_runs("default", job.id, states=frozenset(), limit=3, after=token)
    assert ([*first, *rest], end) == (by_node, "")
    some = frozenset({RunState.FAILED, RunState.SUCCEEDED})
    assert await store.list_runs("default", job.id, states=some, limit=3, after="") == ((failed,), "")
    assert await store.count_runs("default", job.id) == {RunState.FAILED: 1, RunState.PENDING: 3}


async def test_unfinished_jobs_are_those_that_are_not_terminal(store: Store, make: Make) -> None:
    made = {state: make.job(["web-2", "web-1"], state=state) for state in JobState}
    for job, runs in made.values():
        await store.create_job(job, runs, None)
    unfinished = await store.unfinished_jobs()
    assert [snapshot.job for snapshot in unfinished] == [made[JobState.NEW][0], made[JobState.RUNNING][0]]
    assert [run.node for run in unfinished[0].runs] == ["web-1", "web-2"]
    assert unfinished[1] == await store.snapshot_job("default", unfinished[1].job.id)


async def test_big_job_is_stored_whole(store: Store, make: Make) -> None:
    job, runs = make.job([f"node-{number:05}" for number in range(2_500)])
    await store.create_job(job, runs, None)
    snapshot = await store.snapshot_job("default", job.id)
    assert snapshot is not None
    assert list(snapshot.runs) == runs
    extents = await store.output_extents([run.id for run in runs])
    assert len(extents) == 2_500
