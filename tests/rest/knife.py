"""Runs ``knife.rb``: knife-shove's way of calling, signed by the Ruby code that knife signs with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from subprocess import DEVNULL, run
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

SCRIPT = Path(__file__).with_name("knife.rb")


@cache
def missing() -> str:
    """Why it cannot run here; empty when it can."""
    if shutil.which("ruby") is None:
        return "ruby is not installed"
    test = ["ruby", "-e", 'require "openssl"; require "mixlib/authentication/signedheaderauth"']
    return "ruby-mixlib-authentication is not installed" if run(test, stderr=DEVNULL, check=False).returncode else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a call printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def last(self) -> Any:
        return self.lines[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Knife:
    """Somebody's knife."""

    url: str
    user: str
    key_file: Path
    version: str = "1.1"

    @property
    def environ(self) -> Mapping[str, str]:
        return {
            "CHEF_URL": self.url,
            "CHEF_USER": self.user,
            "CHEF_KEY": str(self.key_file),
            "SIGN_VERSION": self.version,
            "RETRY_WAIT": "0.1",
        }

    async def __call__(self, *words: str) -> Said:
        """Runs one subcommand, such as ``job start CMD NODE``, to its end."""
        process = await trio.run_process(
            ["ruby", str(SCRIPT), *words],
            env={**os.environ, **self.environ},
            stdin=b"",
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        return Said(code=process.returncode, out=process.stdout.decode(), err=process.stderr.decode())


def make_knife(directory: Path, *, port: int, user: str, key: RSAPrivateKey, version: str = "1.1") -> Knife:
    """A knife with its key in a file; skips the test where there is no Ruby for it."""
    why = missing()
    if why:
        pytest.skip(why)
    file = directory / f"{user}.pem"
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    return Knife(url=f"http://127.0.0.1:{port}", user=user, key_file=file, version=version)
