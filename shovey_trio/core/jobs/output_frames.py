"""The output log of a run, byte for byte.

A log is a sequence of frames and nothing else. It is only ever appended to, so whatever follows the last complete
frame is a frame still being written, or the victim of a power cut.

===========  =====  ==========================================================================
field        bytes  meaning (little endian)
===========  =====  ==========================================================================
kind         1      1 stdout, 2 stderr, 3 gap
reserved     3      zero
length       4      bytes of the body: at most 65,536 for output, exactly 16 for a gap
read_at      8      microseconds since the epoch, by the node's clock
body         …      the output's bytes; of a gap: bytes left out of stdout, bytes left out of stderr
===========  =====  ==========================================================================

This module is imported by the supervisor process, which must start in milliseconds and stay small: it imports
``struct`` alone. ``core.jobs.output`` has the reading side.
"""

from __future__ import annotations

from struct import Struct

STDOUT = 1
STDERR = 2
GAP = 3

# One read of a pipe, one frame, one chunk: see design.md section 8 on what smaller messages cost.
MAX_BODY = 65_536

HEADER = Struct("<B3xIQ")
GAP_BODY = Struct("<QQ")


def encode_header(kind: int, length: int, read_at: float) -> bytes:
    """Returns the 16 bytes that go before a body of ``length`` bytes."""
    return HEADER.pack(kind, length, max(0, int(read_at * 1_000_000)))


def encode_gap(*, stdout: int, stderr: int, read_at: float) -> bytes:
    """Returns the whole frame that stands for bytes the cap left out."""
    return encode_header(GAP, GAP_BODY.size, read_at) + GAP_BODY.pack(stdout, stderr)
