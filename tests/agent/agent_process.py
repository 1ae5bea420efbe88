"""An agent to be killed: starts the runs that it reads from stdin, and writes down what happens.

``python agent_process.py STATE_DIR`` reads one JSON object per line, the fields of a ``RunSpec``, and writes one word
per line: ``accepted RUN``, ``duplicate RUN``, ``started RUN``, ``finished RUN``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import trio

from shovey_agent.run.executor import Executor, ExecutorConfig, open_executor
from shovey_agent.run.runs import Finished, RunSpec, Started


async def main(state_dir: Path) -> None:
    async with open_executor(ExecutorConfig(state_dir=state_dir)) as executor:
        await executor.adopt()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell, executor)
            async for line in trio.wrap_file(sys.stdin):
                fields = json.loads(line)
                outcome = await executor.start(RunSpec(**{**fields, "argv": tuple(fields["argv"])}))
                print(type(outcome).__name__.lower(), fields["run_id"], flush=True)
            nursery.cancel_scope.cancel(reason="stdin ended")


async def tell(executor: Executor) -> None:
    async for event in executor.events:
        match event:
            case Started(run_id=run_id):
                print("started", run_id, flush=True)
            case Finished(report=report):
                print("finished", report.run_id, flush=True)
            case _:
                pass


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))
