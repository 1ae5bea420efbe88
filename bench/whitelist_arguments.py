"""Proof of the whitelist's arguments: a million generated values, each judged by a second opinion.

    python bench/whitelist_arguments.py [COUNT] [SEED]

For every value and rule it checks that the value is accepted exactly when the rule holds in full, and that an accepted
one is exactly one element of the argument vector, which is the template with the value in its place. The second opinion
on patterns is Python's ``re``; on the rest it is the rule once more, written the other way round. Half of the values
are made to match and then, half of these, spoiled in one place, for random text alone would seldom come near.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from shovey_trio.core.jobs.command_input import CommandInput
from shovey_trio.core.whitelist.permit import InputRefused, permit
from shovey_trio.core.whitelist.whitelist import parse_whitelist

COUNT = 1_000_000
_SPOILS = ("\n", "\0", "-", " ", "/", "..", "\u2028", "\r", ";", "é", "0", "a", "\ud800", "'", "$(x)", "{v}", "\x7f")
_LETTERS = "abcxyzAZ019-_.:/;, \n\té{}$'\"\\"


class Case(NamedTuple):
    """A rule, a maker of values that keep it, and the second opinion."""

    rule: dict[str, Any]
    make: Callable[[random.Random], str]
    holds: Callable[[str], bool]


def main(count: int, seed: int) -> int:
    chance = random.Random(seed)
    began = time.perf_counter()
    accepted = wrong = 0
    judges = [(case, _entry(case)) for case in _cases()]
    for number in range(count):
        case, entry = judges[number % len(judges)]
        value = _value(chance, case)
        try:
            argv = permit(entry, CommandInput(args={"v": value})).argv
        except InputRefused:
            argv = None
        expected = ("prog", value, f"--v={value}", f"{{{value}}}", "end") if _should(case, value) else None
        accepted += argv is not None
        if argv != expected:
            wrong += 1
            print(f"WRONG {case.rule} {value!r}: {argv}, expected {expected}")
    took = time.perf_counter() - began
    print(f"{count} values, {len(judges)} rules, seed {seed}: {accepted} accepted, {wrong} wrong, {took:.0f} s")
    return 1 if wrong or not count // 5 < accepted < count * 4 // 5 else 0


def _entry(case: Case) -> Any:
    template = ["prog", "{v}", "--v={v}", "{{{v}}}", "end"]
    document = {"x": {"argv": template, "args": {"v": case.rule}}}
    return parse_whitelist(json.dumps(document).encode()).resolve("x")


def _should(case: Case, value: str) -> bool:
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        return False
    return len(value.encode()) <= case.rule.get("max_length", 4096) and case.holds(value)


def _value(chance: random.Random, case: Case) -> str:
    if chance.random() < 0.25:
        return "".join(chance.choices(_LETTERS, k=chance.randrange(12)))
    value = case.make(chance)
    if chance.random() < 0.4:
        at = chance.randrange(len(value) + 1)
        value = value[:at] + chance.choice(_SPOILS) + value[at + chance.randrange(2) :]
    return value


def _cases() -> list[Case]:
    return [
        _pattern("[a-z0-9][a-z0-9.-]{0,20}", lambda c: "a" + _some(c, "az09.-", 15)),
        _pattern("(?:restart|reload|stop|start)", lambda c: c.choice(["restart", "reload", "stop", "start"])),
        _pattern("role\\[[A-Za-z_:-]+\\](?:,role\\[[A-Za-z_:-]+\\])*", _run_list),
        _pattern("(a|aa|aaa)*b?", lambda c: _some(c, "a", 12) + c.choice(["", "b"])),
        _pattern("[^;|&$]*", lambda c: _some(c, "xyz -\n", 10)),
        _pattern(".+", lambda c: "x" + _some(c, _LETTERS.replace("\n", ""), 10)),
        _pattern("-{1,2}[a-z]+(?:=[^\\n]*)?", lambda c: "--" + "ab" + c.choice(["", "=v v"])),
        _pattern("[\\x{e0}-\\x{ff}]+|[0-9a-f]{8}", lambda c: _some(c, "àéÿ", 5) or "0123abcd", "[à-ÿ]+|[0-9a-f]{8}"),
        Case({}, lambda c: "w" + _some(c, "az 09.-$;'{}é", 12), _plain),
        Case({"max_length": 9}, lambda c: _some(c, "aé", 8) or "x", _plain),
        Case({"type": "int", "min": -50, "max": 5000}, lambda c: str(c.randrange(-60, 5200)), _integer(-50, 5000)),
        Case(
            {"type": "enum", "values": ["on", "off", "-v", "a b"]}, lambda c: c.choice(["on", "off", "-v", "a b"]), _one
        ),
        Case({"type": "path", "under": ["/srv/www", "/tmp"]}, _path, _under("/srv/www", "/tmp")),
    ]


def _pattern(pattern: str, make: Callable[[random.Random], str], witness: str = "") -> Case:
    compiled = re.compile(witness or pattern)
    return Case({"pattern": pattern}, make, lambda value: compiled.fullmatch(value) is not None)


def _plain(value: str) -> bool:
    return bool(value) and value[0] != "-" and not any(ord(c) < 32 or c in "\x7f\x85\u2028\u2029" for c in value)


def _integer(least: int, most: int) -> Callable[[str], bool]:
    plain = {str(number) for number in range(least, most + 1)}
    return lambda value: value in plain


def _one(value: str) -> bool:
    return value in ("on", "off", "-v", "a b")


def _under(*roots: str) -> Callable[[str], bool]:
    def holds(value: str) -> bool:
        head, *parts = value.split("/")
        if head or any(part in ("", ".", "..") for part in parts) or not _plain(value):
            return False
        return any(parts[: root.count("/")] == root.split("/")[1:] for root in roots)

    return holds


def _path(chance: random.Random) -> str:
    parts = chance.choices(["a", "b.c", "..d", "x y"], k=chance.randrange(3))
    return "/".join([chance.choice(["/srv/www", "/tmp", "/srv/wwwx", "/srv"]), *parts])


def _run_list(chance: random.Random) -> str:
    return ",".join(f"role[{_some(chance, 'abZ_:-', 6) or 'base'}]" for _ in range(chance.randrange(1, 4)))


def _some(chance: random.Random, letters: str, most: int) -> str:
    return "".join(chance.choices(letters, k=chance.randrange(most + 1)))


if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(main(int(words[0]) if words else COUNT, int(words[1]) if len(words) > 1 else 1))
