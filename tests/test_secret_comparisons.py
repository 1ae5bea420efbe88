"""No secret is compared with ``==``: it ends at the first difference, and its time tells where that is.

Looks at every ``==`` and ``!=`` of the program with a side whose name says that it is a secret or proves one. What is
left is listed with the reason.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECRET = re.compile(
    r"(^|_)(secret|secrets|token|tokens|password|digest|hexdigest|signature|mac|hmac|nonce|checksum|proof|hash)$", re.I
)
#: Words that make a name one of something else.
HARMLESS = re.compile(r"resume_token|page_token|next_page_token|proof_kind")
#: File and the comparison as it is written, with why it is none of a secret.
EXPLAINED = {
    ("shovey_trio/core/trust/enrollment.py", "encode_token(secret) != token"): "the caller's own token, with itself",
    ("shovey_trio/core/trust/enrollment.py", "checksum != _checksum(body)"): "finds a line that was cut; no protection",
    (
        "shovey_trio/core/serf/doorbell.py",
        "doorbell.organization != organization_hash(organization)",
    ): "of a public name",
    ("shovey_trio/shovey/protocol/wire.py", "key != _SIGNATURE"): "the name of a field",
    (
        "shovey_trio/store/sql/pages.py",
        "raw[:_DIGEST_BYTES] != _digest(listing)",
    ): "names the listing; anybody can make it",
    (
        "shovey_trio/store/sql/credentials.py",
        "enrollment_tokens.c.digest == digest",
    ): "SQL, by the SHA-256 of 256 random bits",
    (
        "shovey_trio/store/sql/credentials.py",
        "enrollment_tokens.c.digest != digest",
    ): "all other tokens of a node, in SQL, by their digests",
    ("agent/shovey_agent/credentials.py", "begun['token'] == digest"): "the node's own file with the node's own token",
    ("shovey_trio/store/sql/job_writes.py", "row[-1] != request.digest"): "the caller's own request",
}


def names(node: ast.expr) -> Iterator[str]:
    """What a side of a comparison is called."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            yield name
        case ast.Call(func=func):
            yield from names(func)
        case ast.Subscript(value=value):
            yield from names(value)


def comparisons(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Compare) or not all(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
            continue
        sides = [node.left, *node.comparators]
        if any(isinstance(side, ast.Constant) for side in sides):
            continue
        if any(SECRET.search(name) and not HARMLESS.search(name) for side in sides for name in names(side)):
            yield str(path.relative_to(ROOT)), ast.unparse(node)


def found(*folders: str) -> set[tuple[str, str]]:
    return {
        one
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "_pb2" not in path.name and not {"testing", "bench"} & set(path.relative_to(ROOT).parts)
        for one in comparisons(path)
    }


def test_no_secret_is_compared_with_an_operator() -> None:
    unexplained = found("shovey_trio", "agent") - set(EXPLAINED)
    assert not unexplained, f"use hmac.compare_digest, or explain: {sorted(unexplained)}"


def test_every_explanation_is_of_something_that_is_there() -> None:
    assert set(EXPLAINED) <= found("shovey_trio", "agent")


def test_a_comparison_of_secrets_would_be_found(tmp_path: Path) -> None:
    file = ROOT / "tests" / "test_secret_comparisons.py"
    assert list(comparisons(file)) == []
    for text in ("given.token == kept", "if hexdigest(x) != y: pass", "signature[:8] == other"):
        assert any(
            SECRET.search(name)
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Compare)
            for side in [node.left, *node.comparators]
            for name in names(side)
        )
