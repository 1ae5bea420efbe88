"""Where the shim answers otherwise than the recorded goiardi, on purpose; ``docs/knife.md`` tells the same to people.

Keys are labels of ``golden/http.jsonl``, or the beginnings of several with ``*`` behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Difference:
    """A deliberate difference: the status that is answered instead, and why."""

    status: int
    why: str


DIFFERENT: Final[dict[str, Difference]] = {
    "setup.client.*": Difference(404, "Chef's clients are not managed here; with [chef] it is passed through"),
    "setup.node.*": Difference(405, "Chef's nodes are not managed here; with [chef] it is passed through"),
    "job.start.timeout0": Difference(400, "a run with no time at all is a mistake, not a job"),
    "job.start.timeout_neg": Difference(400, "a run with negative time is a mistake, not a job"),
    "job.start.quorum='33.33%'": Difference(200, "any fraction of a percent is understood"),
    "job.start.quorum='NaN'": Difference(400, "that is no number of nodes"),
    "job.start.quorum_json=1": Difference(200, "a number is a number of nodes; goiardi ignored it"),
    "job.start.nodes_ints": Difference(400, "goiardi dropped the connection"),
    "job.start.command_int": Difference(400, "goiardi dropped the connection"),
    "job.start.command_empty": Difference(400, "no whitelist has an entry without a name"),
    "job.start.trailing_garbage": Difference(400, "what follows the JSON was not meant to be ignored"),
    "limit.cmd300": Difference(400, "commands are names of whitelist entries, at most 256 characters"),
    "limit.cmd4*": Difference(400, "commands are names of whitelist entries, at most 256 characters"),
    "limit.cmd5*": Difference(400, "commands are names of whitelist entries, at most 256 characters"),
    "status.badpath /status": Difference(400, "goiardi's router redirects"),
    "get.badpath /shovey": Difference(400, "goiardi's router redirects"),
    "status.head.unknown": Difference(404, "HEAD says what GET would"),
    "head.job.run.unknown": Difference(404, "HEAD says what GET would"),
    "head.stream.unknown": Difference(404, "HEAD says what GET would"),
    "head.jobs": Difference(200, "goiardi dropped the connection"),
    "put.*.by_other_node": Difference(403, "a node may report only for itself"),
    "put.stream.dup_seq": Difference(403, "a node may report only for itself"),
    "put.stream.seq7_gap": Difference(403, "a node may report only for itself"),
    "put.stream.unknown_node": Difference(403, "a node may report only for itself"),
    "put.run.unknown_node": Difference(403, "a node may report only for itself"),
    "put.stream.bad_type": Difference(400, "there are two streams, and no others"),
    "put.stream.both_type": Difference(400, "a piece of output is of one stream"),
    "put.stream.neg_seq": Difference(400, "pieces are counted from 0"),
    "put.stream.float_seq": Difference(400, "pieces are counted in whole numbers"),
    "put.run.arbitrary_status": Difference(400, "there are as many states as there are"),
    "put.run.int_status": Difference(400, "a state is a word"),
    "cancel.unknown_node": Difference(404, "goiardi dropped the connection"),
    "cancel.nonadmin": Difference(403, "goiardi let every client cancel every job"),
    "auth.header0": Difference(200, "goiardi dropped the connection; the header means nothing"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Unrecorded:
    """A deliberate difference that was found beside the recordings: the request, goiardi's status, and ours."""

    what: str
    method: str
    path: str
    body: str
    goiardi: int
    ours: Difference


UNRECORDED: Final = (
    Unrecorded(
        what="quorum -1",
        method="POST",
        path="/shovey/jobs",
        body='{"command":"work","nodes":["web-1"],"quorum":"-1"}',
        goiardi=200,
        ours=Difference(400, "that is no number of nodes"),
    ),
    Unrecorded(
        what="command with a newline",
        method="POST",
        path="/shovey/jobs",
        body='{"command":"work\\nmore","nodes":["web-1"]}',
        goiardi=200,
        ours=Difference(400, "no whitelist has an entry of that name"),
    ),
    Unrecorded(
        what="POST on a stream",
        method="POST",
        path="/shovey/stream/00000000-0000-0000-0000-000000000000/web-1",
        body="{}",
        goiardi=405,
        ours=Difference(405, "as goiardi"),
    ),
)

#: Rows that say something about goiardi, schob or serf and not about the protocol, or need a state of theirs that must
#: not come to be here; and where the rule that matters is tested.
ELSEWHERE: Final[dict[str, str]] = {
    "fault.*": "faults of goiardi and schob",
    "limit.nodes23*": "serf's limit: tests of the legacy dispatch",
    "replay.start": "at most once: tests of the agents",
    "tampered.info": "a bad order never changes an ended run: tests of the legacy nodes",
    "spoof.*": "presence is not for everybody to set: tests of the legacy nodes",
    "job.info.timeout0": "there is no such job",
    "job.status.timeout_neg": "there is no such job",
    "job.info.timeout_neg": "there is no such job",
    "job.status.running": "of a job that is over when it is replayed: tests of the shim's jobs",
    "job.info.running": "of a job that is over when it is replayed: tests of the shim's jobs",
    "stream.get.live*": "knife's reading of a live stream: tests of the shim's streams",
    "job.info.zork": "that state does not exist",
    "job.status.reopened": "what has ended stays so",
    "put.run.after_complete": "what has ended stays so: tests of the legacy nodes",
    "job.info.bin": "the bytes were lost in the recording; tests of the shim's streams",
    "cancel.all.*": "cancelling, which is a proof here: tests of the shim's jobs",
    "cancel.again*": "cancelling, which is a proof here: tests of the shim's jobs",
    "cancel.setup*": "cancelling, which is a proof here: tests of the shim's jobs",
    "cancel.some*": "cancelling, which is a proof here: tests of the shim's jobs",
    "cancel.rest*": "cancelling, which is a proof here: tests of the shim's jobs",
    "cancel.trap*": "cancelling, which is a proof here: tests of the shim's jobs",
    "cancel.finished*": "cancelling, which is a proof here: tests of the shim's jobs",
    "cancel.partial_setup*": "cancelling, which is a proof here: tests of the shim's jobs",
}

#: Members whose recorded value is goiardi's mistake, by label: ours instead.
VALUES: Final[dict[str, dict[str, object]]] = {
    "stream.get?sequence=0&output_type=both": {"output": "hello\n", "is_last": True, "last_seq": 0},
    "stream.get.both?sequence=0&output_type=both": {"output": None, "is_last": True, "last_seq": 0},
    "stream.get?sequence=1&output_type=stdout": {"is_last": True},
    "stream.get?sequence=5&output_type=stdout": {"is_last": True},
    "stream.get?sequence=-1": {"is_last": True},
    "job.info.partial_down": {"error": None},
    "job.status.timeout_str": {"run_timeout": 7},
    "job.status.timeout_float": {"run_timeout": 2.9},
}


def find(table: dict[str, object], label: str) -> object | None:
    """The entry for a label."""
    from fnmatch import fnmatchcase

    return table.get(label) or next(
        (entry for key, entry in table.items() if "*" in key and fnmatchcase(label, key.replace("[", "[[]"))), None
    )
