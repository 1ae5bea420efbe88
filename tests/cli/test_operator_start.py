"""``shovey job start``, as a process."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.rpc_certificates import CertificateAuthority

from .conftest import OperatorRig


async def test_output_is_labelled_by_node_and_success_is_exit_0(rig: OperatorRig) -> None:
    done = await rig.run("job", "start", "hello", "web-1", "db-1")
    assert done.code == 0
    assert sorted(done.out.splitlines()) == ["db-1  | hello from db-1", "web-1 | hello from web-1"]
    assert "complete: 2 succeeded" in done.err


async def test_one_failed_run_is_exit_1_and_named(rig: OperatorRig) -> None:
    done = await rig.run("job", "start", "mixed", "web-1", "web-2")
    assert done.code == 1
    assert "web-2: failed (exit 3)" in done.err
    assert "1 succeeded, 1 failed" in done.err
    assert "web-2 | to stderr" in done.out


async def test_unmet_quorum_is_exit_6(rig: OperatorRig) -> None:
    done = await rig.run("job", "start", "hello", "--all")
    assert done.code == 6
    assert "quorum_failed (4 nodes must be up)" in done.err
    assert done.out == ""


async def test_quorum_timeouts_and_selection_reach_the_controller(rig: OperatorRig) -> None:
    options = ["--match", "*-1", "-q", "50%", "--timeout", "15m", "--kill-grace", "2.5s", "--request-id", "mine"]
    assert (await rig.run("job", "start", "hello", *options)).code == 0
    (job,) = rig.controller.jobs.values()
    assert sorted(job.runs) == ["db-1", "web-1"]
    assert job.request.quorum == "50%"
    assert job.request.run_timeout.seconds == 900
    assert job.request.kill_grace.ToMilliseconds() == 2500
    assert job.request.request_id == "mine"


async def test_tags_must_all_be_carried(rig: OperatorRig) -> None:
    done = await rig.run("job", "start", "hello", "--tag", "role=web", "--dry-run", "-o", "name")
    assert done.out.split() == ["web-1", "web-2"]


async def test_dry_run_shows_targets_and_starts_nothing(rig: OperatorRig) -> None:
    done = await rig.run("job", "start", "hello", "--all", "--dry-run")
    assert done.code == 0
    rows = [line.split() for line in done.out.splitlines()]
    assert rows == [
        ["NODE", "UP", "ROUTE"],
        ["db-1", "up", "stream"],
        ["db-2", "down", "none"],
        ["web-1", "up", "stream"],
        ["web-2", "up", "stream"],
    ]
    assert not rig.controller.jobs


async def test_background_prints_the_id_alone(rig: OperatorRig) -> None:
    done = await rig.run("job", "start", "--background", "hang", "web-1")
    assert done.code == 0
    assert done.out.split() == list(rig.controller.jobs)
    assert f"shovey job watch {done.out.strip()}" in done.err


async def test_a_lost_answer_never_starts_two_jobs(rig: OperatorRig) -> None:
    rig.controller.lost_answers = 2
    done = await rig.run("job", "start", "hello", "web-1", "-o", "name")
    assert done.code == 0
    assert done.out.split() == list(rig.controller.jobs)


async def test_without_an_answer_the_request_id_is_told(rig: OperatorRig) -> None:
    rig.controller.lost_answers = 1000
    done = await rig.run("job", "start", "hello", "web-1")
    (job,) = rig.controller.jobs.values()
    assert done.code == 7
    assert f"--request-id {job.request.request_id}" in done.err
    rig.controller.lost_answers = 0
    again = await rig.run("job", "start", "hello", "web-1", "--request-id", job.request.request_id)
    assert again.code == 0
    assert len(rig.controller.jobs) == 1


async def test_no_output_leaves_stdout_empty(rig: OperatorRig) -> None:
    done = await rig.run("job", "start", "hello", "web-1", "--no-output")
    assert (done.code, done.out) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["hello", "web-9", "web-1"], 3, "UNKNOWN_NODES"),
        (["nothing", "web-1"], 3, "NOT_FOUND"),
        (["hello", "web-1", "-q", "200%"], 2, "INVALID_QUORUM"),
        (["hello", "web-1", "-q", "7"], 2, "INVALID_QUORUM"),
        (["hello", "--match", "mail-*"], 2, "NO_TARGETS"),
    ],
)
async def test_what_the_controller_refuses_is_one_line_with_its_reason(
    rig: OperatorRig, arguments: list[str], code: int, reason: str
) -> None:
    done = await rig.run("job", "start", *arguments)
    assert done.code == code
    assert done.err.startswith("error: ")
    assert done.err.endswith(f"({reason})\n")
    assert len(done.err.splitlines()) == 1
    assert not rig.controller.jobs


async def test_a_viewer_is_denied(rig: OperatorRig) -> None:
    rig.controller.read_only = True
    done = await rig.run("job", "start", "hello", "web-1")
    assert done.code == 4
    assert "(PERMISSION_DENIED)" in done.err


async def test_a_request_id_belongs_to_one_job(rig: OperatorRig) -> None:
    assert (await rig.run("job", "start", "hello", "web-1", "--request-id", "r")).code == 0
    done = await rig.run("job", "start", "hello", "web-2", "--request-id", "r")
    assert done.code == 5
    assert "(REQUEST_ID_REUSED)" in done.err


async def test_a_controller_that_is_not_there_is_exit_7(rig: OperatorRig) -> None:
    done = await rig.run("--server", "127.0.0.1:1", "job", "start", "hello", "web-1")
    assert done.code == 7
    assert "Connection refused" in done.err
    assert done.err.endswith("(UNREACHABLE)\n")


async def test_a_controller_of_another_authority_is_not_talked_to(rig: OperatorRig, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.crt"
    stranger.write_bytes(CertificateAuthority("stranger").pem)
    done = await rig.run("--ca", str(stranger), "job", "start", "hello", "web-1")
    # Our own certificate is not of that authority either, which is seen before anybody is called.
    assert done.code == 4
    assert "certificate" in done.err.lower()
    assert not rig.controller.jobs


async def test_a_key_that_others_can_read_is_refused(rig: OperatorRig, client_directory: Path) -> None:
    (client_directory / "client.key").chmod(0o644)
    done = await rig.run("job", "start", "hello", "web-1")
    assert done.code == 2
    assert "(INSECURE_FILE)" in done.err


async def test_wrong_settings_are_named_without_a_trace(rig: OperatorRig, client_directory: Path) -> None:
    (client_directory / "config.toml").write_text('[client]\nserver = "nowhere"\ncolour = "red"\n')
    done = await rig.run("job", "list")
    assert done.code == 2
    assert "server" in done.err
    assert "colour" in done.err
    assert "Traceback" not in done.err
