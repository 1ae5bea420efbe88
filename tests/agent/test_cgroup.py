"""Which cgroup runs are put into, and what is written there to limit them.

The rules of the kernel are tested with a real cgroup in test_kill.py. Here directories stand in for one, because the
memory controller is not there to be enabled on every machine: what is shown is what would be written where.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shovey_agent.supervisor.cgroup import RunCgroup, enable_controllers, find_delegated_cgroup


class Machine:
    """A /proc directory of a process and a hierarchy of directories that are cgroups to it."""

    def __init__(self, directory: Path, own: str) -> None:
        self.proc = directory / "proc"
        self.mount = directory / "cgroup"
        self.proc.mkdir()
        (self.proc / "cgroup").write_text(f"1:name=systemd:/elsewhere\n0::/{own}\n")
        (self.proc / "mounts").write_text(f"tmpfs /tmp tmpfs rw 0 0\ncgroup2 {self.mount} cgroup2 rw 0 0\n")
        self.group(own)

    def group(self, path: str, *, controllers: str = "cpu memory pids", delegated: bool = False) -> Path:
        group = self.mount / path
        group.mkdir(parents=True, exist_ok=True)
        (group / "cgroup.controllers").write_text(controllers)
        (group / "cgroup.subtree_control").write_text("")
        if delegated:
            try:
                os.setxattr(group, "user.delegate", b"1")
            except OSError:  # not every file system has attributes of this kind
                os.setxattr(group, "trusted.delegate", b"1")
        return group

    def found(self) -> str | None:
        return find_delegated_cgroup(str(self.proc))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path, "system.slice/agent.service/launcher")


def test_a_group_that_was_not_delegated_is_left_alone(machine: Machine) -> None:
    assert machine.found() is None
    machine.group("system.slice", delegated=True)  # two above: somebody else's
    assert machine.found() is None


def test_where_the_agent_has_a_group_of_its_own_below_runs_go_beside_it_and_get_its_controllers(
    machine: Machine,
) -> None:
    unit = machine.group("system.slice/agent.service", delegated=True)
    assert machine.found() == str(unit)
    assert (unit / "cgroup.subtree_control").read_text() == "+memory +pids"


def test_where_the_agent_itself_is_in_the_delegated_group_no_controller_is_enabled(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "system.slice/agent.service")
    unit = machine.group("system.slice/agent.service", delegated=True)
    assert machine.found() == str(unit)
    # The kernel refuses it to a group with processes in it, and systemd could start nothing in there any more.
    assert (unit / "cgroup.subtree_control").read_text() == ""


def test_processes_of_the_whole_tree_are_limited_where_there_is_a_pids_controller(tmp_path: Path) -> None:
    group = RunCgroup(str(tmp_path), "x")
    (tmp_path / "run-x").mkdir()
    assert not group.limit_processes(7)
    (tmp_path / "run-x" / "pids.max").touch()
    assert group.limit_processes(7)
    assert (tmp_path / "run-x" / "pids.max").read_text() == "7"


def test_memory_is_enabled_only_where_it_was_delegated(machine: Machine) -> None:
    group = machine.group("other", controllers="cpu memory_pressure")
    enable_controllers(str(group))
    assert (group / "cgroup.subtree_control").read_text() == ""


def test_a_memory_limit_holds_for_the_whole_tree_with_its_swap(tmp_path: Path) -> None:
    group = RunCgroup(str(tmp_path), "x")
    kernel = tmp_path / "run-x"
    kernel.mkdir()
    for name in ("memory.max", "memory.swap.max", "memory.oom.group"):
        (kernel / name).write_text("")
    assert group.limit_memory(123_456)
    assert {path.name: path.read_text() for path in kernel.iterdir()} == {
        "memory.max": "123456",
        "memory.swap.max": "0",
        "memory.oom.group": "1",
    }


def test_a_group_without_the_memory_controller_limits_nothing_and_no_file_appears(tmp_path: Path) -> None:
    group = RunCgroup(str(tmp_path), "x")
    (tmp_path / "run-x").mkdir()
    assert not group.limit_memory(123_456)
    assert list((tmp_path / "run-x").iterdir()) == []
