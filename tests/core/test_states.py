"""The tables of states."""

from __future__ import annotations

import pytest

from shovey_trio.core.errors import IllegalTransition
from shovey_trio.core.jobs.states import (
    ACTIVE_RUN_STATES,
    JOB_TRANSITIONS,
    RUN_TRANSITIONS,
    TERMINAL_JOB_STATES,
    TERMINAL_RUN_STATES,
    JobState,
    RunState,
    check_job_transition,
    check_run_transition,
)


def test_every_state_has_a_line_in_its_table() -> None:
    assert set(RUN_TRANSITIONS) == set(RunState)
    assert set(JOB_TRANSITIONS) == set(JobState)


def test_terminal_states_are_those_of_the_design() -> None:
    alive = {
        RunState.HELD,
        RunState.PENDING,
        RunState.DISPATCHED,
        RunState.ACCEPTED,
        RunState.RUNNING,
        RunState.UNKNOWN,
    }
    assert set(RunState) - TERMINAL_RUN_STATES == alive
    assert set(JobState) - TERMINAL_JOB_STATES == {JobState.NEW, JobState.RUNNING}


def test_no_state_leads_to_itself_and_every_live_one_to_an_end() -> None:
    for table, terminal in ((RUN_TRANSITIONS, TERMINAL_RUN_STATES), (JOB_TRANSITIONS, TERMINAL_JOB_STATES)):
        for state, following in table.items():
            assert state not in following
            assert state in terminal or following & terminal


def test_unknown_is_left_by_anything_a_live_run_could_have_reached() -> None:
    reachable = set().union(*(RUN_TRANSITIONS[state] for state in (RunState.DISPATCHED, *ACTIVE_RUN_STATES)))
    assert reachable - {RunState.UNKNOWN} <= RUN_TRANSITIONS[RunState.UNKNOWN]


def test_an_accepted_run_is_never_refused_or_unavailable() -> None:
    for state in ACTIVE_RUN_STATES:
        assert not RUN_TRANSITIONS[state] & {RunState.NACKED, RunState.INVALID, RunState.UNAVAILABLE}


def test_an_illegal_change_names_what_and_from_where_to_where() -> None:
    with pytest.raises(IllegalTransition, match="job may not go from complete to running"):
        check_job_transition(JobState.COMPLETE, JobState.RUNNING)
    with pytest.raises(IllegalTransition) as caught:
        check_run_transition(RunState.ACCEPTED, RunState.PENDING)
    assert (caught.value.subject, caught.value.before, caught.value.after) == ("run", "accepted", "pending")
