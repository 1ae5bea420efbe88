"""Verifying an audit log whole: its chain, the heads that were kept of it, and the runs its records vouch for."""

from __future__ import annotations

import hmac
import json
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from shovey_trio.core.audit.chain import ChainVerifier
from shovey_trio.core.audit.records import AuditAction, AuditBroken, AuditHead, AuditRecord, record_hash
from shovey_trio.core.audit.runs import RunsDigest
from shovey_trio.store.contract import AuditStore, JobHistory

_T = TypeVar("_T")

_PAGE: Final = 500
_CHAIN_FIELDS: Final = frozenset({"previous", "hash"})


class VerifiedStore(AuditStore, JobHistory, Protocol):
    """What of a store is verified."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedAudit:
    """A log that holds.

    Attributes:
        start: what its first record follows.
        jobs: how many jobs' runs were compared with the record of their end.
    """

    start: AuditHead
    head: AuditHead
    records: int
    jobs: int = 0


async def verify_audit(store: VerifiedStore, *, expected: Sequence[AuditHead], runs: bool) -> VerifiedAudit:
    """Reads the whole log, a page at a time.

    Args:
        expected: heads that must be met.
        runs: also compare the runs of jobs that are still stored with what was recorded at their end.

    Raises:
        AuditBroken: with the first record that does not hold.
    """
    start = await store.audit_start()
    verifier = ChainVerifier(start, expected)
    records = jobs = 0
    async with aclosing(read_all(store)) as all_records:
        async for record in all_records:
            verifier.feed(record)
            records += 1
            if runs and f'"{AuditAction.JOB_ENDED.value}"' in record.body:
                jobs += await _compare_runs(store, record)
    return VerifiedAudit(start=start, head=verifier.finish(), records=records, jobs=jobs)


async def read_all(
    store: AuditStore, *, organization: str = "", since: float | None = None, until: float | None = None
) -> AsyncGenerator[AuditRecord, None]:
    """Yields every record, in order; to be closed by whoever may not read to the end."""
    after = 0
    while True:
        page = await store.read_audit(after_seq=after, limit=_PAGE, organization=organization, since=since, until=until)
        for record in page:
            yield record
        if len(page) < _PAGE:
            return
        after = page[-1].seq


def export_line(record: AuditRecord, previous: bytes | None) -> str:
    """A record as one line of JSON: its fields, its hash, and that of the one before where it is known."""
    fields = json.loads(record.body)
    chain = {"hash": record.hash.hex()} | ({"previous": previous.hex()} if previous is not None else {})
    return json.dumps({**fields, **chain}, sort_keys=True, separators=(",", ":"))


def verify_export(lines: Iterable[str], *, expected: Sequence[AuditHead]) -> VerifiedAudit:
    """Verifies an export of everything in a stretch of time, without the store.

    Raises:
        AuditBroken: a line does not follow the one before, or a head that lies in the stretch is not met.
    """
    verifier: ChainVerifier | None = None
    start, records = AuditHead(seq=0, hash=b""), 0
    for record, previous in _imported(lines):
        if verifier is None:
            start = AuditHead(seq=record.seq - 1, hash=previous)
            met = [head for head in expected if head.seq >= start.seq]
            verifier = ChainVerifier(start, met)
        elif not hmac.compare_digest(previous, verifier.head.hash):
            raise AuditBroken(f"record {record.seq} does not follow the one before", seq=str(record.seq))
        verifier.feed(record)
        records += 1
    if verifier is None:
        raise AuditBroken("there is no record")
    # An export may begin anywhere; only its end is promised.
    missed = [head for head in expected if head.seq > verifier.head.seq]
    if missed:
        raise AuditBroken(
            f"the export ends at {verifier.head.seq}; {missed[0].seq} is expected", seq=str(missed[0].seq)
        )
    return VerifiedAudit(start=start, head=verifier.head, records=records)


def _imported(lines: Iterable[str]) -> Iterator[tuple[AuditRecord, bytes]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields: dict[str, Any] = json.loads(line)
            previous, digest = bytes.fromhex(fields["previous"]), bytes.fromhex(fields["hash"])
            said = {name: value for name, value in fields.items() if name not in _CHAIN_FIELDS}
            body = json.dumps(said, sort_keys=True, separators=(",", ":"))
            record = AuditRecord(
                seq=_typed(said["seq"], int),
                at=said["at"],
                organization=_typed(said["organization"], str),
                body=body,
                hash=digest,
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise AuditBroken(f"line {number} is no record of a whole export") from None
        if not hmac.compare_digest(record_hash(previous, body), digest):
            raise AuditBroken(f"record {record.seq} was changed", seq=str(record.seq))
        yield record, previous


def _typed(value: Any, kind: type[_T]) -> _T:
    if type(value) is not kind:
        raise TypeError(kind.__name__)
    return value


async def _compare_runs(store: JobHistory, record: AuditRecord) -> int:
    said = json.loads(record.body)
    if said["action"] != AuditAction.JOB_ENDED.value:
        return 0
    organization, job_id = said["organization"], said["subject"].removeprefix("job/")
    if await store.get_job(organization, job_id) is None:
        return 0
    digest, after = RunsDigest(), ""
    while True:
        runs, after = await store.list_runs(organization, job_id, states=frozenset(), limit=_PAGE, after=after)
        for run in runs:
            digest.add(run)
        if not after:
            break
    if not hmac.compare_digest(digest.hexdigest, str(said["detail"].get("runs_sha256"))):
        raise AuditBroken(f"the runs of job {job_id} are not those that record {record.seq} was made of", job=job_id)
    return 1
