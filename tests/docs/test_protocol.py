"""docs/protocol.md and docs/architecture.md say what the tables in the code say."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from shovey_agent.run.runs import ExecutorRefusal, ExitCause
from shovey_trio.config.server import ServerSettings
from shovey_trio.core import errors
from shovey_trio.core.jobs.model import Role
from shovey_trio.core.jobs.states import TERMINAL_RUN_STATES, JobState, RunState
from shovey_trio.core.trust.authz import METHODS, PERMITTED
from shovey_trio.core.trust.orders import RefusalReason

DOCS = Path(__file__).parents[2] / "docs"
PACKAGE = DOCS.parent / "shovey_trio"
PROTOCOL = (DOCS / "protocol.md").read_text("utf-8")
ARCHITECTURE = (DOCS / "architecture.md").read_text("utf-8")
POLICY_COLUMNS = (Role.ADMIN, Role.OPERATOR, Role.VIEWER, Role.NODE)


def rows(document: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its head."""
    below = document.partition(f"\n## {heading}\n")[2]
    lines = [line for line in below.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_error_of_the_core_is_told_with_its_status() -> None:
    told = {(reason.strip("`"), code.strip("`")) for reason, code, _ in rows(PROTOCOL, "Errors")}
    defined = {
        (error.reason, error.code.name)
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.ShoveyError) and error is not errors.ShoveyError
    }
    assert told == defined


def test_every_method_is_told_with_who_may_call_it() -> None:
    told: dict[str, frozenset[Role]] = {}
    for methods, *cells in rows(PROTOCOL, "Who may call what"):
        service, names = "", re.findall(r"`([\w/]+)`", methods)
        for name in names:
            service = name.partition("/")[0] if "/" in name else service
            path = f"/shovey_trio.v1.{service}/{name.rpartition('/')[2]}"
            told[path] = frozenset(role for role, cell in zip(POLICY_COLUMNS, cells, strict=True) if cell == "yes")
    assert told == {path: PERMITTED[action] for path, action in METHODS.items() if path.startswith("/shovey_trio.v1.")}


def test_every_state_of_a_run_is_told_with_whether_it_is_the_end() -> None:
    told = {RunState(state.strip("`")): ended == "yes" for state, _, ended in rows(PROTOCOL, "States")}
    assert told == {state: state in TERMINAL_RUN_STATES for state in RunState}


def test_every_cause_of_a_run_is_told() -> None:
    told = {cause.strip("`") for cause, *_ in rows(PROTOCOL, "Causes")}
    of_jobs = {"quorum_not_met", "run_timeout"}
    of_nodes = {*map(str, ExitCause), *map(str, RefusalReason), *map(str, ExecutorRefusal)}
    assert told | of_jobs == _written_causes() | of_nodes


def test_the_states_of_causes_are_states() -> None:
    told = {state.strip("` ") for _, states, _ in rows(PROTOCOL, "Causes") for state in states.split(",")}
    assert told <= set(RunState)


def _written_causes() -> set[str]:
    """The words that are given as a ``cause`` in the code of jobs, by name or in a tuple."""
    folders = ("core/jobs", "nursery", "routes", "application", "shovey")
    paths = [path for folder in folders for path in (PACKAGE / folder).rglob("*.py")]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    named = {
        node.targets[0].id: node.value.value
        for node in nodes
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id.isupper()
        and isinstance(node.value, ast.Constant)
    }
    found: set[object] = set()
    for value in (value for node in nodes for value in _causes_at(node)):
        for word in ast.walk(value):
            if isinstance(word, ast.Constant):
                found.add(word.value)
            elif isinstance(word, ast.Name) and word.id in named:
                found.add(named[word.id])
    return {word for word in found if isinstance(word, str) and word.isidentifier()}


def _causes_at(node: ast.AST) -> list[ast.expr]:
    match node:
        case ast.Call(func=ast.Name(id="Unauthenticated")):
            return []  # why a certificate is refused: no run's
        case ast.Call(keywords=keywords):
            return [keyword.value for keyword in keywords if keyword.arg == "cause"]
        case ast.Assign(targets=[ast.Name(id="cause")], value=value):
            return [value]
        case ast.Assign(targets=[ast.Tuple(elts=names)], value=value):
            at = next((at for at, name in enumerate(names) if isinstance(name, ast.Name) and name.id == "cause"), None)
            either = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
            return [] if at is None else [each.elts[at] for each in either if isinstance(each, ast.Tuple)]
        case _:
            return []


def test_every_state_of_a_job_is_told() -> None:
    line = next(line for line in PROTOCOL.splitlines() if line.startswith("A job: `"))
    assert set(re.findall(r"[a-z_]+", line.split("`")[1])) == set(JobState)


def test_the_bounds_are_those_of_the_configuration() -> None:
    limits = ServerSettings().limits
    told = dict(re.findall(r"\(`limits\.(\w+)`\) \| ([\d,]+)(?: MiB)? \|", ARCHITECTURE))
    assert set(told) == set(type(limits).model_fields) - {"max_message", "enroll_per_minute", "failed_auth_per_minute"}
    for name, figure in told.items():
        unit = 2**20 if name in ("output_buffer", "max_run_output") else 1
        assert int(figure.replace(",", "")) * unit == getattr(limits, name), name
