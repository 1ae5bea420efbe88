"""Taking secrets out of a stream, however it is cut into pieces.

What is found is the secret as it was given, and each of its longer lines. A command that encodes a secret before it
prints it has published it.

Imported by the supervisor process: the standard library's small modules alone.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MARK = b"[redacted]"
# Shorter lines of a secret are not looked for: they would be found everywhere.
_SHORTEST_LINE = 8
# A longer secret is looked for in pieces of this size: it bounds what is held back, and the work per byte.
_LONGEST_PIECE = 1024


def patterns_of(secrets: Iterable[bytes]) -> list[bytes]:
    """Returns what to look for: every secret without the white space around it, and its longer lines."""
    found: set[bytes] = set()
    for secret in secrets:
        found.update(_pieces(secret.strip()))
        for line in map(bytes.strip, secret.splitlines()):
            if len(line) >= _SHORTEST_LINE:
                found.update(_pieces(line))
    found.discard(b"")
    return sorted(found)


def _pieces(secret: bytes) -> list[bytes]:
    """Cuts a long secret into pieces that cover all of it; the last two may overlap."""
    if len(secret) <= _LONGEST_PIECE:
        return [secret]
    whole = range(0, len(secret) - _LONGEST_PIECE, _LONGEST_PIECE)
    return [*(secret[at : at + _LONGEST_PIECE] for at in whole), secret[-_LONGEST_PIECE:]]


class Redactor:
    """Puts ``MARK`` in place of every occurrence; occurrences that overlap are one.

    What comes out does not depend on how the input was cut. Held back is at most the longest secret less a byte, and
    only while it may be the beginning of one.
    """

    def __init__(self, patterns: list[bytes]) -> None:
        self._patterns = patterns
        self._longest = max(map(len, patterns), default=0)
        self._held = b""
        # How much of the beginning of what is held belongs to an occurrence whose mark is out already.
        self._covered = 0

    def feed(self, data: bytes) -> bytes:
        """Takes a piece and returns what can be shown by now."""
        if not self._patterns:
            return data
        text = self._held + data
        hold = self._undecided(text)
        return self._show(text, len(text) - hold)

    def flush(self) -> bytes:
        """Returns what was held back, at the end of the stream."""
        return self._show(self._held, len(self._held))

    def _show(self, text: bytes, end: int) -> bytes:
        """Shows ``text`` up to ``end`` and holds the rest."""
        shown = []
        at = self._covered
        self._covered = 0
        for start, stop in self._occurrences(text, at):
            if start >= end:
                break
            if start >= at:
                shown += [text[at:start], MARK]
            at = max(at, stop)
        if at < end:
            shown.append(text[at:end])
        else:
            self._covered = at - end
        self._held = text[end:]
        return b"".join(shown)

    def _occurrences(self, text: bytes, covered: int) -> list[tuple[int, int]]:
        """Spans of occurrences, those that overlap joined; the first may be the rest of one whose mark is out."""
        spans = [(0, covered)] if covered else []
        for pattern in self._patterns:
            at = text.find(pattern)
            while at >= 0:
                spans.append((at, at + len(pattern)))
                at = text.find(pattern, at + 1)
        joined: list[tuple[int, int]] = []
        for start, stop in sorted(spans):
            if joined and start < joined[-1][1]:
                joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
            else:
                joined.append((start, stop))
        return joined

    def _undecided(self, text: bytes) -> int:
        """Returns the length of the longest end of ``text`` that may be the beginning of a secret."""
        undecided = 0
        for pattern in self._patterns:
            at = text.find(pattern[:1], max(0, len(text) - len(pattern) + 1))
            while 0 <= at < len(text) - undecided:
                if pattern.startswith(text[at:]):
                    undecided = len(text) - at
                at = text.find(pattern[:1], at + 1)
        return undecided
