"""What a fuzz target is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One decoder under fire.

    Attributes:
        name: on the command line, and of its corpus.
        decode: gives the bytes to the decoder and does with the result what its callers do; it also asserts what must
            hold of whatever was accepted.
        seeds: inputs that are right, or nearly: what the search starts from. Called once, when the target is run.
        refusals: the typed errors by which the decoder says no. Any other exception is a find.
        short: how many inputs are a short run: less than a second.
        per_process: inputs after which a long run goes on in a new process: what was accepted stays in a controller,
            and the fuzzer's own bookkeeping of what happens in other threads grows with each.
        max_len: bytes of an input. A decoder's own limit lies below it where that can be afforded.
    """

    name: str
    decode: Callable[[bytes], object]
    seeds: Callable[[], Iterable[bytes]]
    refusals: tuple[type[Exception], ...] = ()
    max_len: int = 4096
    short: int = 500
    per_process: int = -1

    def __call__(self, data: bytes) -> None:
        """Decodes one input.

        Raises:
            Exception: a find: the decoder neither accepted the input nor refused it by one of ``refusals``.
        """
        try:
            self.decode(data)
        except self.refusals:
            return
