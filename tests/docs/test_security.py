"""docs/security.md claims nothing that no test shows, and leaves none of the threats out that it promises to treat."""

from __future__ import annotations

import re
from pathlib import Path

from shovey_trio.config.server import ServerSettings
from shovey_trio.core.audit.records import AuditAction
from shovey_trio.core.audit.tally import KINDS
from shovey_trio.shovey.kind import KEY_RESET

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text("utf-8")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
THREATS = (
    "A stolen signing key",
    "A stolen root key",
    "A stolen node key",
    "A stolen operator certificate",
    "A hostile gossip member",
    "A hostile controller host",
    "A hostile network process on the node",
    "A stolen backup or database",
    "Strangers on the network",
)


def claims() -> list[str]:
    """Rows of tables whose last column is a test."""
    rows: list[str] = []
    in_claims = False
    for line in TEXT.splitlines():
        if not line.startswith("|"):
            in_claims = False
        elif line.rstrip().endswith("| test |"):
            in_claims = True
        elif in_claims and not line.startswith("|---"):
            rows.append(line)
    return rows


def test_every_test_that_is_named_is_there() -> None:
    named = NAMED.findall(TEXT)
    assert len(named) > 60
    for file, test in named:
        path = ROOT / file
        assert path.exists(), file
        assert f"def {test}(" in path.read_text("utf-8"), f"{file}::{test}"


def test_every_claim_names_its_test() -> None:
    assert len(claims()) > 50
    assert [row for row in claims() if not NAMED.search(row)] == []


def test_every_threat_has_its_section_with_claims() -> None:
    for threat in THREATS:
        section = TEXT.partition(f"\n## {threat}\n")[2].partition("\n## ")[0]
        assert NAMED.search(section), threat


def test_every_kind_of_record_is_told() -> None:
    section = TEXT.partition("## The audit log")[2].partition("\n## ")[0]
    told = set(re.findall(r"`([a-z_]+(?:\.[a-z_*]+)?)`", section))
    families = {word.removesuffix(".*") for word in told if word.endswith(".*")}
    for action in (*AuditAction, KEY_RESET):
        assert str(action) in told or action.partition(".")[0] in families, action


def test_settings_and_figures_that_are_named_are_those_in_force() -> None:
    settings = ServerSettings()
    for section, name in re.findall(r"`(limits|rest|retention|vault|legacy)\.(\w+)`", TEXT):
        assert hasattr(getattr(settings, section), name), f"{section}.{name}"
    assert f"{2 * KINDS + 1} a minute" in TEXT
    assert f"({settings.retention.audit / 86_400:.0f} days)" in TEXT
    assert f"({settings.vault.refresh:.0f} s)" in TEXT
