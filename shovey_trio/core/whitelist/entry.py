"""One command of a whitelist: what it runs, as whom, within which limits, and what an order may add.

docs/whitelist.md describes every key; ``entry_problems`` finds everything that is wrong with an entry as written,
``entry_warnings`` what is dangerous about one that is right.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from shovey_trio.core.jobs.command_input import MAX_STDIN, NAME
from shovey_trio.core.whitelist.template import Template, read_template, template_problems
from shovey_trio.core.whitelist.values import ValueKind, ValueRule, is_passable, read_rule, rule_problems

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SIZE = re.compile(r"([0-9]{1,15})\s*(B|KiB|MiB|GiB)?")
_UNITS = {None: 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_OCTAL = re.compile(r"0?[0-7]{3}")
_ACCOUNT = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}\$?")
_LOCK = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_KEYS = frozenset(
    {
        *("argv", "args", "user", "users", "group", "cwd", "env", "umask", "timeout", "nice", "limits"),
        *("stdin", "lock", "concurrency", "output_cap"),
    }
)
_LIMITS = frozenset({"memory", "cpu_seconds", "open_files", "processes"})
_DEFAULT_STDIN = 64 * 1024
# What runs any program or script that it is given: with text of the operator's own in it, there is no whitelist left.
_INTERPRETER = re.compile(
    r"(?:ba|da|z|k|fi)?sh|python[0-9.]*|perl[0-9.]*|ruby[0-9.]*|node|php[0-9.]*|lua[0-9.]*|awk|gawk|mawk|sed|env|xargs"
    r"|find|ssh|sudo|su|nohup|nice|timeout|busybox|make|eval|vim?|chroot|docker|podman|systemd-run|knife|irb|tclsh"
)
# Variables that make programs load or run other things.
_LOADERS = re.compile(
    r"PATH|LD_.*|DYLD_.*|BASH_ENV|ENV|IFS|PYTHON.*|PERL.*|RUBY.*|NODE_.*|JAVA_TOOL_OPTIONS|GIT_.*|SHELLOPTS|HOME"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the kernel holds a command to; None where it is not limited.

    Attributes:
        memory: bytes, of the whole tree where the agent has a cgroup with the memory controller; else of address space
            per process.
        cpu_seconds: processor time per process.
    """

    memory: int | None = None
    cpu_seconds: int | None = None
    open_files: int | None = None
    processes: int | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A command that may run.

    Attributes:
        argv: never empty; ``argv[0]`` is looked up in the command's own PATH unless it has a slash. With ``args`` it is
            the template as written, to be shown.
        template: what to fill, for an entry with ``args``.
        args: what each argument may be.
        user: the account it runs as; empty for the agent's own.
        users: further accounts that an order may choose.
        group: in place of the account's own.
        cwd: absolute, or None for ``/``.
        env: added to the clean environment.
        env_rules: variables that an order may set, and to what.
        umask: None for 022.
        timeout: seconds at most, whatever the order asks for; None leaves it to the order.
        stdin: bytes that an order may send as standard input; 0 for none.
        lock: of all commands with this word at most one runs; empty for none.
        concurrency: how many of this command may run; 0 for any number.
        output_cap: bytes kept of a run's output; None for what the agent's settings say.
    """

    name: str
    argv: tuple[str, ...]
    template: Template | None = None
    args: Mapping[str, ValueRule] = field(default_factory=dict)
    user: str = ""
    users: tuple[str, ...] = ()
    group: str = ""
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    env_rules: Mapping[str, ValueRule] = field(default_factory=dict)
    umask: int | None = None
    timeout: float | None = None
    nice: int = 0
    limits: Limits = NO_LIMITS
    stdin: int = 0
    lock: str = ""
    concurrency: int = 0
    output_cap: int | None = None


class Pairs(list[tuple[str, Any]]):
    """A JSON object with its keys as written: a dict would hide that one stands there twice."""


def entry_problems(value: Any) -> Iterator[str]:
    """Yields everything that is wrong with an entry; JSON objects in it are ``Pairs``."""
    match value:
        case str():
            yield from _problems_of_line(value)
        case Pairs():
            yield from _problems_of_object(value)
        case _:
            yield "must be a command line or an object with 'argv'"


def read_entry(name: str, value: Any) -> Entry:
    """The entry of a value that ``entry_problems`` has nothing to say of."""
    if isinstance(value, str):
        return Entry(name=name, argv=tuple(shlex.split(value)))
    keys = dict(value)
    args, env, limits = (dict(keys.get(key) or ()) for key in ("args", "env", "limits"))
    timeout, umask = keys.get("timeout"), keys.get("umask")
    return Entry(
        name=name,
        argv=tuple(word for item in keys["argv"] for word in (item if isinstance(item, list) else [item])),
        template=read_template(keys["argv"]) if args else None,
        args=MappingProxyType({key: read_rule(dict(rule)) for key, rule in args.items()}),
        user=keys.get("user", ""),
        users=tuple(keys.get("users", ())),
        group=keys.get("group", ""),
        cwd=keys.get("cwd"),
        env=MappingProxyType({key: fixed for key, fixed in env.items() if isinstance(fixed, str)}),
        env_rules=MappingProxyType(
            {key: read_rule(dict(rule)) for key, rule in env.items() if not isinstance(rule, str)}
        ),
        umask=None if umask is None else int(umask, 8),
        timeout=None if timeout is None else float(timeout),
        nice=keys.get("nice", 0),
        limits=Limits(**{key: _size(limit) for key, limit in limits.items()}),
        stdin=_stdin_cap(keys.get("stdin", False)) or 0,
        lock=keys.get("lock", ""),
        concurrency=keys.get("concurrency", 0),
        output_cap=_size(keys.get("output_cap")),
    )


def entry_warnings(entry: Entry) -> Iterator[str]:
    """Yields what is dangerous about an entry that is valid."""
    free = sorted(name for name, rule in entry.args.items() if rule.is_free)
    program = entry.argv[0].rpartition("/")[2]
    if _INTERPRETER.fullmatch(program):
        if free:
            yield f"{program} runs what it is told, and {', '.join(free)} is text of the operator's own"
        if entry.stdin:
            yield f"{program} may run what it reads, and an order may send it standard input"
    if "/" not in entry.argv[0]:
        yield f"{program} is looked up in the PATH; an absolute path says which one is meant"
    if entry.template is not None:
        for name in sorted(entry.template.leading()):
            if entry.args[name].admits_dash:
                number = entry.args[name].kind is ValueKind.INT
                why = f"{name} may be negative" if number else f"the pattern of {name} admits a leading dash"
                yield f"{why}, so its value may be taken for an option"
    for name, rule in sorted(entry.env_rules.items()):
        if _LOADERS.fullmatch(name) and rule.is_free:
            yield f"{name} decides what programs load, and an order may set it"
    if entry.template is None and any(re.search(r"\{[A-Za-z_]\w*\}", word) for word in entry.argv):
        yield "there is a {name} in 'argv' and no 'args': it is taken as it stands"


def _problems_of_line(line: str) -> Iterator[str]:
    try:
        argv = shlex.split(line)
    except ValueError as error:
        yield f"not a command line: {str(error).lower()}"
    else:
        yield from _problems_of_argv(argv)


def _problems_of_argv(argv: Any) -> Iterator[str]:
    if not isinstance(argv, list) or not all(isinstance(word, str) for word in argv):
        yield "'argv' must be a list of strings"
    elif not argv or not argv[0]:
        yield "names no program"
    elif any(not is_passable(word) for word in argv):
        yield "an argument has a NUL or a lone surrogate, which no program can be given"


def _problems_of_object(pairs: Pairs) -> Iterator[str]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        yield "a key stands there twice"
    if unknown := sorted(keys.keys() - _KEYS):
        yield f"not understood: {', '.join(unknown)}"
    if "argv" not in keys:
        yield "has no 'argv'"
    elif "args" in keys:
        yield from _problems_of_args(keys["argv"], keys["args"])
    else:
        yield from _problems_of_argv(keys["argv"])
    cwd = keys.get("cwd")
    if cwd is not None and not (isinstance(cwd, str) and cwd.startswith("/") and is_passable(cwd)):
        yield "'cwd' must be an absolute path"
    timeout = keys.get("timeout")
    if timeout is not None and not _is_duration(timeout):
        yield "'timeout' must be a number of seconds above 0"
    if "env" in keys:
        yield from _problems_of_env(keys["env"])
    yield from _problems_of_account(keys)
    yield from _problems_of_running(keys)
    if "limits" in keys:
        yield from _problems_of_limits(keys["limits"])


def _problems_of_args(argv: Any, args: Any) -> Iterator[str]:
    if not isinstance(args, Pairs) or not args:
        yield "'args' must be an object of arguments"
        return
    if len(dict(args)) < len(args):
        yield "'args' describes an argument twice"
    for name, rule in args:
        if not NAME.fullmatch(name):
            yield f"'args' has {name!r}, which is no name"
        yield from _problems_of_rule(f"argument {name!r}", rule)
    yield from template_problems(argv, frozenset(name for name, _ in args))


def _problems_of_env(env: Any) -> Iterator[str]:
    if not isinstance(env, Pairs):
        yield "'env' must be an object"
        return
    if len(dict(env)) < len(env):
        yield "'env' names a variable twice"
    for name, value in env:
        if not _ENV_NAME.fullmatch(name):
            yield f"'env' has {name!r}, which is no variable name"
        elif name.startswith("SHOVEY_"):
            yield f"'env' has {name}, which is reserved"
        if isinstance(value, Pairs):
            yield from _problems_of_rule(f"variable {name!r}", value)
        elif not isinstance(value, str) or not is_passable(value):
            yield f"'env' must give {name!r} a string without NUL, or an object that says what an order may give it"


def _problems_of_rule(what: str, rule: Any) -> Iterator[str]:
    if isinstance(rule, Pairs) and len(dict(rule)) < len(rule):
        yield f"{what}: a key stands there twice"
    yield from rule_problems(what, dict(rule) if isinstance(rule, Pairs) else rule)


def _problems_of_account(keys: dict[str, Any]) -> Iterator[str]:
    for key in ("user", "group"):
        if key in keys and not (isinstance(keys[key], str) and _ACCOUNT.fullmatch(keys[key])):
            yield f"{key!r} must be a name"
    users = keys.get("users", [])
    if not isinstance(users, list) or not all(isinstance(name, str) and _ACCOUNT.fullmatch(name) for name in users):
        yield "'users' must be a list of names"


def _problems_of_running(keys: dict[str, Any]) -> Iterator[str]:
    umask = keys.get("umask")
    if umask is not None and not (isinstance(umask, str) and _OCTAL.fullmatch(umask)):
        yield "'umask' must be a string of three octal digits, such as \"027\""
    if not _is_integer(keys.get("nice", 0), -20, 19):
        yield "'nice' must be an integer from -20 to 19"
    if not _is_integer(keys.get("concurrency", 0), 0, 10**6):
        yield "'concurrency' must be a number of runs"
    if "lock" in keys and not (isinstance(keys["lock"], str) and _LOCK.fullmatch(keys["lock"])):
        yield "'lock' must be a word of letters, digits and . _ -"
    if "output_cap" in keys and not _size(keys["output_cap"]):
        yield "'output_cap' must be a number of bytes above 0 or a size such as \"1GiB\""
    if _stdin_cap(keys.get("stdin", False)) is None:
        yield f"'stdin' must be true, false or a size of at most {MAX_STDIN} bytes"


def _problems_of_limits(limits: Any) -> Iterator[str]:
    if not isinstance(limits, Pairs):
        yield "'limits' must be an object"
        return
    if len(dict(limits)) < len(limits):
        yield "'limits' names a limit twice"
    if unknown := sorted({name for name, _ in limits} - _LIMITS):
        yield f"'limits' has {', '.join(unknown)}, which is none of {', '.join(sorted(_LIMITS))}"
    for name, value in limits:
        if name in _LIMITS and (not _size(value) or (name != "memory" and isinstance(value, str))):
            yield f"'limits' must give {name} a number above 0" + (' or a size such as "512MiB"' * (name == "memory"))


def _stdin_cap(value: Any) -> int | None:
    if isinstance(value, bool):
        return _DEFAULT_STDIN if value else 0
    cap = _size(value)
    return cap if cap is not None and cap <= MAX_STDIN else None


def _size(value: Any) -> int | None:
    """A number, or a size with its unit; None for anything else."""
    if isinstance(value, str):
        found = _SIZE.fullmatch(value)
        return None if found is None else int(found[1]) * _UNITS[found[2]]
    return value if _is_integer(value, 0, 2**62) else None


def _is_duration(value: Any) -> bool:
    # bool is an int to Python; NaN and infinity are numbers to its JSON reader.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 10**9


def _is_integer(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
