"""Starts a job, follows its output and prints how it ended on each node. Needs grpcio and grpcio-tools, nothing else.

    python run_job.py --server HOST:PORT --credentials DIRECTORY COMMAND NODE...

DIRECTORY is a client directory as ``shovey-trio init`` and ``shovey-trio user cert`` make it (ca.crt, client.crt,
client.key). The stubs are made from the .proto files of this repository when the program starts; in a project of your
own you would generate them once. Exits with 0 if the command succeeded everywhere, with 1 if not.
"""

from __future__ import annotations

import argparse
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc

PROTO = Path(__file__).resolve().parents[2] / "proto"
#: Every controller's certificate carries this name, whatever address it is reached by.
SERVER_NAME = "shovey-trio.internal"
CALL_DEADLINE = 30.0

sys.path.insert(0, str(PROTO))
pb, services = grpc.protos_and_services("shovey_trio/v1/job_service.proto")
job_pb = grpc.protos("shovey_trio/v1/job.proto")


def open_channel(server: str, credentials: Path) -> grpc.Channel:
    """A channel with mutual TLS; connects with the first call."""
    tls = grpc.ssl_channel_credentials(
        root_certificates=(credentials / "ca.crt").read_bytes(),
        private_key=(credentials / "client.key").read_bytes(),
        certificate_chain=(credentials / "client.crt").read_bytes(),
    )
    return grpc.secure_channel(server, tls, options=[("grpc.ssl_target_name_override", SERVER_NAME)])


def watch(jobs: services.JobServiceStub, job_id: str) -> Iterator[pb.WatchJobResponse]:
    """Every event of the job until it has ended; a broken stream is resumed where it broke."""
    token = ""
    while True:
        request = pb.WatchJobRequest(job_id=job_id, resume_token=token, include_output=True)
        try:
            # A controller that is away for a moment is waited for.
            for answer in jobs.WatchJob(request, wait_for_ready=True):
                yield answer
                token = answer.resume_token
            return
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise


class Lines:
    """Prints output by whole lines, each behind its node's name: chunks end anywhere, even within a character."""

    def __init__(self) -> None:
        self._begun: dict[tuple[str, int], bytes] = {}

    def take(self, node: str, stream: int, data: bytes) -> None:
        *whole, rest = (self._begun.pop((node, stream), b"") + data).split(b"\n")
        for line in whole:
            self._print(node, line)
        if rest:
            self._begun[node, stream] = rest

    def finish(self) -> None:
        """Prints what has no newline at its end."""
        for (node, _), rest in self._begun.items():
            self._print(node, rest)
        self._begun.clear()

    @staticmethod
    def _print(node: str, line: bytes) -> None:
        print(f"{node} | {line.decode('utf-8', 'replace')}", flush=True)


def run_job(jobs: services.JobServiceStub, command: str, nodes: list[str]) -> bool:
    """Whether the command succeeded on every node."""
    start = pb.StartJobRequest(
        # Sent again with the same id, the request would be answered with the same job.
        request_id=uuid.uuid4().hex,
        command=command,
        target=pb.Target(nodes=pb.NodeNames(names=nodes)),
    )
    job = jobs.StartJob(start, timeout=CALL_DEADLINE).job
    print(f"job {job.id}", flush=True)

    lines = Lines()
    runs: dict[str, job_pb.Run] = {}
    for answer in watch(jobs, job.id):
        match answer.WhichOneof("event"):
            case "snapshot":
                job = answer.snapshot.job
                runs |= {run.node: run for run in answer.snapshot.runs}
            case "job_changed":
                job = answer.job_changed.job
            case "run_changed":
                runs[answer.run_changed.run.node] = answer.run_changed.run
            case "output":
                lines.take(answer.output.node, answer.output.chunk.stream, answer.output.chunk.data)
    lines.finish()

    for node, run in sorted(runs.items()):
        state = job_pb.RunState.Name(run.state).removeprefix("RUN_STATE_").lower()
        code = f", exit code {run.exit_code}" if run.HasField("exit_code") else ""
        print(f"{node}: {state}{code}")
    ended = job_pb.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()
    print(f"job {ended}")
    return bool(runs) and all(run.state == job_pb.RUN_STATE_SUCCEEDED for run in runs.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--server", required=True, metavar="HOST:PORT", help="the controller's control address")
    parser.add_argument("--credentials", required=True, type=Path, metavar="DIRECTORY", help="a client directory")
    parser.add_argument("command", help="name of an entry in the nodes' whitelist")
    parser.add_argument("node", nargs="+")
    arguments = parser.parse_args()
    with open_channel(arguments.server, arguments.credentials) as channel:
        try:
            succeeded = run_job(services.JobServiceStub(channel), arguments.command, arguments.node)
        except grpc.RpcError as error:
            print(f"{error.code().name}: {error.details()}", file=sys.stderr)
            return 2
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
