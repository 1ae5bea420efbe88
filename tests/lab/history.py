"""The history of a fault test: what was asked and acknowledged, and the rules that it is held against.

Collected while faults happen, judged when everything is terminal. A rule that does not hold is a ``Violation`` with
the rule's name; the names are those of docs/reliability.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from lab.workload import EVERY_COMMAND, ended_by_itself
from shovey_trio.core.jobs.states import TERMINAL_RUN_STATES
from shovey_trio.store.contract import StoredEvent, StoredJob, StoredRun
from shovey_trio.v1 import job_pb2 as pb

# Nothing was ever started, says the state.
_NEVER_STARTED = frozenset({pb.RUN_STATE_NACKED, pb.RUN_STATE_INVALID, pb.RUN_STATE_UNAVAILABLE})


class Rule(StrEnum):
    """What must hold, whatever fails."""

    JOB_LOST = "no acknowledged job is lost"
    NO_END = "every run ends"
    SECOND_START = "no command runs twice"
    UNTRUE_END = "every end is the true one"
    OUTPUT = "output is byte-identical"
    SURVIVOR = "cancelled means dead"
    UNPROVEN = "cancelled carries its proof"
    TWO_ENDS = "one terminal state"
    OUT_OF_SERVICE = "a node is in service within a minute of right clocks"
    WATCH = "a watcher misses and doubles no event"


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A rule that does not hold."""

    rule: Rule
    subject: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.subject}: {self.detail}"


@dataclass(slots=True, kw_only=True)
class JobRecord:
    """What is known of one job from the outside.

    Attributes:
        excused: run causes that the injected faults may truthfully lead to, beside the command's own end;
            ``CAUSE/never_started`` allows it only with the proof, and the ledger's word, that nothing was started.
        watched: commit sequences of the events that its watcher was given, in the order it got them.
        watched_from: the commit sequence of the watcher's snapshot.
    """

    request_id: str
    command: str
    nodes: tuple[str, ...]
    job_id: str = ""
    cancel_asked: bool = False
    excused: frozenset[str] = frozenset()
    watched: list[int] = field(default_factory=list)
    watched_from: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """A run as the API shows it at the end, with all of its output."""

    run: pb.Run
    stdout: bytes
    stderr: bytes


def judge_job(
    record: JobRecord,
    results: Mapping[str, RunResult],
    *,
    starts: Counter[str],
    alive: Mapping[str, Sequence[int]],
) -> list[Violation]:
    """Holds one acknowledged job against the rules that its end can break.

    Args:
        record: what was asked.
        results: by node; empty when the controller does not know the job.
        starts: by run id, from the ledger.
        alive: living processes by run id.
    """
    if not results:
        return [Violation(rule=Rule.JOB_LOST, subject=record.job_id, detail=f"{record.command} is unknown")]
    found: list[Violation] = []
    for node in record.nodes:
        result = results.get(node)
        if result is None:
            found.append(Violation(rule=Rule.JOB_LOST, subject=record.job_id, detail=f"no run on {node}"))
        else:
            found += _judge_run(record, result, starts[result.run.id], alive.get(result.run.id, ()))
    return found


def judge_events(record: JobRecord, events: Sequence[StoredEvent]) -> list[Violation]:
    """Holds the stored history of a job, and what its watcher was given of it, against the rules.

    Args:
        record: what was asked and watched.
        events: all of the job's stored events but its output, in order.
    """
    found: list[Violation] = []
    ends: Counter[str] = Counter()
    ended: dict[str, str] = {}
    for event in events:
        if isinstance(event, StoredRun):
            if event.run.state in TERMINAL_RUN_STATES and event.run.id not in ended:
                ended[event.run.id] = event.run.state
                ends[event.run.id] += 1
            elif event.run.id in ended and event.run.state != ended[event.run.id]:
                detail = f"{ended[event.run.id]} and then {event.run.state}"
                found.append(Violation(rule=Rule.TWO_ENDS, subject=event.run.id, detail=detail))
    jobs_ended = sum(isinstance(event, StoredJob) and event.job.is_terminal for event in events)
    if jobs_ended != 1:
        detail = f"the job's end was written {jobs_ended} times"
        found.append(Violation(rule=Rule.TWO_ENDS, subject=record.job_id, detail=detail))
    if record.watched_from is not None:
        expected = [event.seq for event in events if event.seq > record.watched_from]
        # What is stored behind the job's end (a late report) may come after the watcher has left.
        if record.watched != expected[: len(record.watched)] or len(record.watched) < _up_to_end(events, expected):
            detail = f"given {record.watched}, stored {expected}"
            found.append(Violation(rule=Rule.WATCH, subject=record.job_id, detail=detail))
    return found


def _up_to_end(events: Sequence[StoredEvent], expected: Sequence[int]) -> int:
    end = next((event.seq for event in events if isinstance(event, StoredJob) and event.job.is_terminal), 0)
    return sum(seq <= end for seq in expected)


def _causes(run: pb.Run, started: int) -> set[str]:
    """A run's cause, and the narrower one of a run that is proven never to have started."""
    never = run.proof == pb.PROOF_KIND_NEVER_STARTED and not started
    return {run.cause, f"{run.cause}/never_started"} if never else {run.cause}


def _judge_run(record: JobRecord, result: RunResult, started: int, alive: Sequence[int]) -> list[Violation]:
    run = result.run
    command = EVERY_COMMAND[record.command]
    subject = f"{record.command} {run.id} on {run.node} ({pb.RunState.Name(run.state)}, {run.cause or 'no cause'})"
    found: list[Violation] = []

    def broken(rule: Rule, detail: str) -> None:
        found.append(Violation(rule=rule, subject=subject, detail=detail))

    if started > 1:
        broken(Rule.SECOND_START, f"started {started} times")
    if not run.HasField("finished_at"):
        broken(Rule.NO_END, "it is not terminal")
        return found
    by_itself = ended_by_itself(run.state)
    if by_itself and (started != 1 or run.exit_code != command.exit_code or not run.HasField("exit_code")):
        broken(Rule.UNTRUE_END, f"exit code {run.exit_code}, {started} starts; it is {command.exit_code}")
    if run.state in _NEVER_STARTED and started:
        broken(Rule.UNTRUE_END, "it was started")
    if run.state == pb.RUN_STATE_CANCELLED:
        if not record.cancel_asked:
            broken(Rule.UNTRUE_END, "nobody cancelled it")
        if run.proof == pb.PROOF_KIND_UNSPECIFIED:
            broken(Rule.UNPROVEN, "no proof")
        if run.proof == pb.PROOF_KIND_NEVER_STARTED and started:
            broken(Rule.UNPROVEN, "it was started")
        if alive:
            broken(Rule.SURVIVOR, f"alive: {list(alive)}")
    elif not by_itself and not record.excused & _causes(run, started):
        broken(Rule.UNTRUE_END, f"nothing that was done to it explains this; {run.detail}")
    expected = (command.expected_stdout(run.id), command.expected_stderr(run.id))
    missing = sum(map(len, expected)) - len(result.stdout) - len(result.stderr)
    if run.dropped_bytes:
        if missing != run.dropped_bytes:
            broken(Rule.OUTPUT, f"{missing} bytes are missing, {run.dropped_bytes} are counted as dropped")
        return found
    for name, got, wanted in zip(("stdout", "stderr"), (result.stdout, result.stderr), expected, strict=True):
        if got != wanted if by_itself else not wanted.startswith(got):
            broken(Rule.OUTPUT, f"{name} has {len(got)} bytes, not the {len(wanted)} that were written")
    return found
