"""An entry's keys: what each of them takes and refuses, to the last value, and what is read from it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shovey_trio.core.jobs.command_input import MAX_STDIN
from shovey_trio.core.trust.orders import RefusalReason
from shovey_trio.core.whitelist.entry import Entry, Limits
from shovey_trio.core.whitelist.template import Template
from shovey_trio.core.whitelist.values import MAX_PATTERN, MAX_VALUE, ValueKind, ValueRule
from shovey_trio.core.whitelist.whitelist import (
    DEFAULT_WHITELIST,
    MAX_FILE_BYTES,
    NotWhitelisted,
    WhitelistInvalid,
    parse_whitelist,
    whitelist_warnings,
)

LARGEST = 2**63 - 1


def entry(**keys: Any) -> Entry:
    return parse_whitelist(json.dumps({"x": {"argv": ["/p"], **keys}}).encode()).resolve("x")


def problems(document: Any) -> list[str]:
    try:
        parse_whitelist(document if isinstance(document, bytes) else json.dumps(document).encode())
    except WhitelistInvalid as error:
        return [problem.message for problem in error.problems]
    return []


def problems_of(**keys: Any) -> list[str]:
    return problems({"x": {"argv": ["/p"], **keys}})


def problems_of_rule(**keys: Any) -> list[str]:
    return problems_of(argv=["/p", "{a}"], args={"a": keys})


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("cwd", ["/", "/a b", None], ["", "a", 7, "/\0"]),
        ("timeout", [0.001, 1, 10**9, None], [0, -1, 10**9 + 1, True, "5"]),
        ("umask", ["027", "0027", "777", None], ["27", "0o27", "00027", "008", 27, "ab 027"]),
        ("nice", [-20, 0, 19], [-21, 20, True, "5", 1.0, None]),
        ("concurrency", [0, 1, 10**6], [-1, 10**6 + 1, True, "5", None]),
        ("lock", ["a.B_9-", "x" * 64], ["", "x" * 65, "a b", 7, None]),
        ("user", ["a", "_x.y-9", "machine$", "u" * 64], ["", "9a", "u" * 65, "a b", "a$b", 7, None]),
        ("group", ["www-data"], ["", "a b", 7]),
        ("users", [[], ["a", "b"]], ["a", [""], [7], None, {"a": "b"}]),
        ("stdin", [True, False, 1, 0, MAX_STDIN, "256KiB"], [MAX_STDIN + 1, "257KiB", -1, "1 MB", None, 1.5]),
        ("output_cap", [1, "1", "1B", "1 KiB", "3GiB", 2**62], [0, "0", -1, "1 MB", True, None, 2**62 + 1, "KiB"]),
        ("env", [{}, {"A_1": "x", "_": ""}], [[], "A", {"1A": "x"}, {"A-B": "x"}, {"SHOVEY_A": "x"}, {"A": None}]),
        (
            "limits",
            [{}, {"memory": "512MiB", "cpu_seconds": 1, "open_files": 2, "processes": 3}, {"memory": 1}],
            [[], {"memory": 0}, {"cpu_seconds": "1"}, {"processes": 0}, {"open_files": True}, {"disk": 1}],
        ),
    ],
)
def test_a_key_takes_what_it_may_and_nothing_beyond(key: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert problems_of(**{key: value}) == [], value
    for value in bad:
        assert len(problems_of(**{key: value})) == 1, value


@pytest.mark.parametrize(
    ("rule", "count"),
    [
        ({}, 0),
        ({"type": "int", "min": -LARGEST, "max": LARGEST}, 0),
        ({"type": "int", "min": 5, "max": 5}, 0),
        ({"type": "int", "min": 6, "max": 5}, 1),
        ({"type": "int", "min": -1}, 0),
        ({"type": "int", "max": -1}, 1),
        ({"type": "int", "min": LARGEST, "default": str(LARGEST)}, 0),
        ({"type": "int", "min": -LARGEST - 1}, 1),
        ({"type": "int", "max": LARGEST + 1}, 1),
        ({"type": "int", "min": "1"}, 1),
        ({"type": "int", "max": True}, 1),
        ({"type": "int", "min": 1.0, "max": 0}, 1),
        ({"type": "int", "pattern": "1"}, 1),
        ({"type": "int", "values": ["1"], "under": ["/a"]}, 1),
        ({"type": "enum", "values": ["a", ""]}, 0),
        ({"type": "enum", "values": []}, 1),
        ({"type": "enum", "values": "ab"}, 1),
        ({"type": "enum", "values": [1]}, 1),
        ({"type": "enum"}, 1),
        ({"type": "path", "under": ["/srv", "/var/"], "pattern": ".*"}, 0),
        ({"type": "path", "under": []}, 0),
        ({"type": "path", "under": ["/"]}, 1),
        ({"type": "path", "under": ["srv"]}, 1),
        ({"type": "path", "under": ["/a/../b"]}, 1),
        ({"type": "path", "under": "/srv"}, 1),
        ({"type": "path", "under": [7]}, 1),
        ({"under": ["/srv"]}, 1),
        ({"max_length": 1}, 0),
        ({"max_length": MAX_VALUE}, 0),
        ({"max_length": 0}, 1),
        ({"max_length": MAX_VALUE + 1}, 1),
        ({"pattern": "x" * MAX_PATTERN}, 0),
        ({"pattern": "x" * (MAX_PATTERN + 1)}, 1),
        ({"pattern": 7}, 1),
        ({"pattern": "("}, 1),
        ({"optional": True}, 0),
        ({"optional": False, "default": "a"}, 0),
        ({"optional": True, "default": "a"}, 1),
        ({"optional": "yes"}, 1),
        ({"optional": 1}, 1),
        ({"default": ""}, 1),
        ({"default": 7}, 1),
        ({"default": None}, 0),
        ({"default": "ab", "max_length": 1}, 1),
        ({"type": "enum", "values": ["a"], "default": "b"}, 1),
        ({"type": "bool"}, 1),
        ({"type": 7}, 1),
        ({"type": ["int"]}, 1),
        ({"unheard": 1}, 1),
    ],
)
def test_a_rule_takes_what_it_may_and_nothing_beyond(rule: dict[str, Any], count: int) -> None:
    found = problems_of_rule(**rule)
    assert len(found) == count, found
    assert all(problem.startswith("argument 'a': ") for problem in found)
    of_variable = problems_of(env={"V": rule})
    assert [problem.replace("variable 'V'", "argument 'a'") for problem in of_variable] == found


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        ({"argv": ["/p", ["-x", "{a}"]], "args": {"a": {}}}, 0),
        ({"argv": ["/p", "{a}", "{a}"], "args": {"a": {}}}, 0),
        ({"argv": ["/p", "{{}}", "{a}{b}"], "args": {"a": {}, "b": {}}}, 0),
        ({"argv": [], "args": {"a": {}}}, 1),
        ({"argv": "p {a}", "args": {"a": {}}}, 1),
        ({"argv": ["/p", [], "{a}"], "args": {"a": {}}}, 1),
        ({"argv": ["/p", ["{a}", 7]], "args": {"a": {}}}, 1),
        ({"argv": [["/p"], "{a}"], "args": {"a": {}}}, 1),
        ({"argv": ["", "{a}"], "args": {"a": {}}}, 1),
        ({"argv": ["/{a}"], "args": {"a": {}}}, 1),
        ({"argv": ["/p", "\0{a}"], "args": {"a": {}}}, 1),
        ({"argv": ["/p", "{a}", "{"], "args": {"a": {}}}, 1),
        ({"argv": ["/p", "{a}", "}"], "args": {"a": {}}}, 1),
        ({"argv": ["/p", "{a}", "{}"], "args": {"a": {}}}, 1),
        ({"argv": ["/p", "{a}", "{b}"], "args": {"a": {}}}, 1),
        ({"argv": ["/p", "{a}"], "args": {"a": {}, "b": {}}}, 1),
        ({"argv": ["/p", "{a}"], "args": {"a": "x"}}, 1),
        ({"argv": ["/p", "{a}"], "args": {"a": {}, "1": {}}}, 2),
        ({"argv": ["/p", "{a}"], "args": [["a", {}]]}, 1),
        ({"argv": ["/p", "a\0"]}, 1),
    ],
)
def test_a_template_and_its_arguments_fit_each_other(keys: dict[str, Any], count: int) -> None:
    found = problems({"x": keys})
    assert len(found) == count, found


@pytest.mark.parametrize(
    "text",
    [
        b'{"argv": ["/p"], "argv": ["/q"]}',
        b'{"argv": ["/p", "{a}"], "args": {"a": {}, "a": {}}}',
        b'{"argv": ["/p", "{a}"], "args": {"a": {"type": "int", "type": "string"}}}',
        b'{"argv": ["/p"], "env": {"A": "1", "A": "2"}}',
        b'{"argv": ["/p"], "env": {"A": {"min": 1, "type": "int", "min": 2}}}',
        b'{"argv": ["/p"], "limits": {"memory": 1, "memory": 2}}',
    ],
)
def test_what_stands_there_twice_is_unclear(text: bytes) -> None:
    [problem] = problems(b'{"x": ' + text + b"}")
    assert "twice" in problem


def test_an_entry_is_read_as_it_is_written() -> None:
    found = entry(
        argv=["/p", ["-a", "{a}"], "{{x}}"],
        args={"a": {"type": "int", "min": -5, "max": 5, "default": "1"}},
        user="www",
        users=["app", "db"],
        group="adm",
        cwd="/srv",
        env={"FIXED": "1", "FREE": {"pattern": "x+", "max_length": 7, "optional": True}},
        umask="027",
        timeout=5,
        nice=-3,
        limits={"memory": "2 KiB", "cpu_seconds": 1, "open_files": 2, "processes": 3},
        stdin="1KiB",
        lock="l",
        concurrency=4,
        output_cap="1MiB",
    )
    assert found == Entry(
        name="x",
        argv=("/p", "-a", "{a}", "{{x}}"),
        template=found.template,
        args={"a": ValueRule(kind=ValueKind.INT, minimum=-5, maximum=5, default="1")},
        user="www",
        users=("app", "db"),
        group="adm",
        cwd="/srv",
        env={"FIXED": "1"},
        env_rules={"FREE": ValueRule(pattern="x+", max_length=7, optional=True)},
        umask=0o027,
        timeout=5.0,
        nice=-3,
        limits=Limits(memory=2048, cpu_seconds=1, open_files=2, processes=3),
        stdin=1024,
        lock="l",
        concurrency=4,
        output_cap=2**20,
    )
    assert isinstance(found.template, Template)
    assert found.template.names() == {"a"}
    assert found.template.leading() == {"a"}
    assert found.template.fill({}) == ("/p", "{x}")
    assert found.template.fill({"a": "7"}) == ("/p", "-a", "7", "{x}")


def test_an_entry_that_says_nothing_has_the_usual_values() -> None:
    assert entry() == Entry(name="x", argv=("/p",))
    assert entry(stdin=True).stdin == 64 * 1024
    assert entry(output_cap="3GiB").output_cap == 3 * 2**30
    rules = {"a": {"type": "path", "under": ["/srv/"]}, "b": {"type": "enum", "values": ["v"]}, "c": {}}
    found = entry(argv=["/p", "{a}", "{b}", "{c}"], args=rules).args
    assert found == {
        "a": ValueRule(kind=ValueKind.PATH, under=("/srv",)),
        "b": ValueRule(kind=ValueKind.ENUM, values=("v",)),
        "c": ValueRule(),
    }
    assert ValueRule().maximum == LARGEST


@pytest.mark.parametrize(
    ("rule", "value", "fits"),
    [
        (ValueRule(max_length=2), "é", True),
        (ValueRule(max_length=2), "éa", False),
        (ValueRule(kind=ValueKind.INT), "0", True),
        (ValueRule(kind=ValueKind.INT), "-1", False),
        (ValueRule(kind=ValueKind.INT), str(LARGEST), True),
        (ValueRule(kind=ValueKind.INT), str(LARGEST + 1), False),
        (ValueRule(kind=ValueKind.PATH), "/", False),
        (ValueRule(kind=ValueKind.PATH), "/a", True),
        (ValueRule(kind=ValueKind.PATH, under=("/a", "/b")), "/b", True),
        (ValueRule(kind=ValueKind.PATH, under=("/a", "/b")), "/b/c", True),
        (ValueRule(kind=ValueKind.PATH, under=("/a", "/b")), "/bc", False),
        (ValueRule(kind=ValueKind.PATH, pattern="/[a-z]+"), "/ab", True),
        (ValueRule(kind=ValueKind.PATH, pattern="/[a-z]+"), "/ab/", False),
        (ValueRule(kind=ValueKind.PATH, pattern="/[a-z]+"), "/a1", False),
        (ValueRule(kind=ValueKind.PATH), "/a\u2029", False),
        (ValueRule(pattern="-?x"), "-x", True),
    ],
)
def test_a_value_fits_its_rule_or_has_a_reason(rule: ValueRule, value: str, fits: bool) -> None:
    assert (rule.mismatch(value) is None) is fits


def test_what_is_free_and_what_may_be_an_option_is_seen() -> None:
    assert [kind for kind in ValueKind if ValueRule(kind=kind).is_free] == [ValueKind.STRING, ValueKind.PATH]
    for pattern, seen in ((None, False), ("[a-z]+", False), ("--?[a-z]+", True), (".*", True), ("--", True)):
        assert ValueRule(pattern=pattern).admits_dash is seen, pattern
    assert not ValueRule(kind=ValueKind.ENUM, values=("-x",)).admits_dash


@pytest.mark.parametrize(
    ("keys", "about"),
    [
        ({"argv": ["/bin/sh", "{a}"], "args": {"a": {}}}, ["sh runs"]),
        ({"argv": ["/bin/sh", "{a}"], "args": {"a": {"type": "int"}}}, []),
        ({"argv": ["/bin/sh"], "stdin": 1}, ["sh may run"]),
        ({"argv": ["/bin/cat", "{a}"], "args": {"a": {}}, "stdin": True}, []),
        ({"argv": ["cat"]}, ["cat is looked up"]),
        ({"argv": ["/bin/cat", "{a}"], "args": {"a": {"pattern": ".+"}}}, ["the pattern of a"]),
        ({"argv": ["/bin/cat", "x{a}"], "args": {"a": {"pattern": ".+"}}}, []),
        ({"argv": ["/bin/cat"], "env": {"LD_PRELOAD": {}, "PATH": {}}}, ["LD_PRELOAD", "PATH"]),
        ({"argv": ["/bin/cat"], "env": {"LD_PRELOAD": "x", "MY_PATH": {}}}, []),
        ({"argv": ["/bin/cat"], "env": {"PATH": {"type": "enum", "values": ["/bin"]}}}, []),
        ({"argv": ["/bin/cat", "{a}"]}, ["there is a {name}"]),
        ({"argv": ["/bin/cat", "{1}", "{"]}, []),
    ],
)
def test_dangers_are_named_and_nothing_else_is(keys: dict[str, Any], about: list[str]) -> None:
    whitelist = parse_whitelist(json.dumps({"x": keys}).encode())
    found = list(whitelist_warnings(whitelist))
    assert [problem.entry for problem in found] == ["x"] * len(about)
    assert all(problem.message.startswith(words) for problem, words in zip(found, about, strict=True))


def test_a_file_may_be_as_long_as_it_may_and_have_a_mark_in_front() -> None:
    text = b"\xef\xbb\xbf" + b'{"x": "/p"}'
    assert parse_whitelist(text.ljust(MAX_FILE_BYTES)).resolve("x").argv == ("/p",)
    assert len(problems(text.ljust(MAX_FILE_BYTES + 1))) == 1


def test_problems_name_their_entry_and_of_one_name_all_are_kept() -> None:
    with pytest.raises(WhitelistInvalid) as caught:
        parse_whitelist(b'{"": "/p", "a": 7, "a": "/p", "b": "/p", "b": "/p"}')
    assert [problem.entry for problem in caught.value.problems] == ["(empty name)", "a", "a", "b"]
    assert "'a': " in str(caught.value)
    with pytest.raises(NotWhitelisted) as refused:
        DEFAULT_WHITELIST.resolve("x y")
    assert refused.value.details == {"command": "x y"}
    assert refused.value.reason == RefusalReason.NOT_WHITELISTED.upper()
