"""Other people's bytes on our terminal: lines put together, nothing in them that a terminal would obey."""

from __future__ import annotations

import re
from typing import Final

# Bytes after which a line is shown as it is so far: the bound of what is kept per stream.
LONGEST_LINE: Final = 16 * 1024

# ECMA-48: CSI sequences (colours, cursor), OSC strings (titles, links), and the two-character escapes.
_ESCAPES: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]")
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_TAB_WIDTH: Final = 4


def printable(text: str | bytes) -> str:
    """One line for a terminal: undecodable bytes and control characters replaced, escape sequences left out.

    Of a line that returned to its beginning (a progress bar) what was written last is kept.
    """
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    text = _ESCAPES.sub("", text)
    if "\r" in text:
        text = next((part for part in reversed(text.split("\r")) if part), "")
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text.expandtabs(_TAB_WIDTH))


class LineAssembler:
    """Cuts a stream of bytes into lines, however the chunks fell."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that are complete now, without their newline; an overlong one comes in pieces."""
        *lines, rest = (self._rest + data).split(b"\n")
        while len(rest) > LONGEST_LINE:
            lines.append(rest[:LONGEST_LINE])
            rest = rest[LONGEST_LINE:]
        self._rest = rest
        return lines

    def flush(self) -> list[bytes]:
        """Return what is left of a last line without a newline."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []

    @property
    def partial(self) -> bytes:
        """What there is of the line in progress."""
        return self._rest
