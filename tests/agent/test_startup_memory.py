"""``startup_memory``: pages of code are given back, and everything that was loaded still works."""

from __future__ import annotations

import subprocess
import sys

# A process of its own, so that nothing else loads code meanwhile. What it uses afterwards is data that the loader has
# relocated (tables of functions), code that was dropped, and both again.
_PROGRAM = """
import re
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from shovey_agent.program.startup_memory import drop_file_pages

def resident():
    return int(re.search(r"RssFile:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

before = resident()
dropped = drop_file_pages()
after = resident()
key = Ed25519PrivateKey.generate()
key.public_key().verify(key.sign(b"message"), b"message")
grpc.insecure_channel("127.0.0.1:1").close()
print(before, dropped, after)
"""


def test_pages_of_code_are_given_back_and_the_code_works_on() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    before, dropped, after = map(int, done.stdout.split())
    assert dropped > before / 2
    assert after < before / 2
