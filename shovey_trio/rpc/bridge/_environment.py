"""What must be in the environment before grpc's C core is loaded; imported before anything else of the bridge.

grpcio has no option for the lowest TLS version. Its one lever is the cipher list, which the C core reads from the
environment when the extension module is loaded, and which governs TLS 1.2 and below only. Our certificates are ECDSA
(P-256), so a list that names nothing but an RSA suite leaves TLS 1.2 without a usable suite, and TLS 1.3 as it was.
Setting it later has no effect at all, therefore a process that loaded grpc first is refused instead of being
silently weaker.

The C core also writes handshake failures straight to stderr, where any stranger with a socket could flood the
daemon's log; that is off unless the operator asks for it.
"""

from __future__ import annotations

import os
import sys
from typing import Final

CIPHER_VARIABLE: Final = "GRPC_SSL_CIPHER_SUITES"
TLS13_ONLY: Final = "ECDHE-RSA-AES128-GCM-SHA256"


def prepare_environment() -> None:
    """Leave TLS 1.3 as the only version that grpc in this process can speak.

    Raises:
        RuntimeError: grpc was loaded earlier with another cipher list, so that TLS 1.2 would still be accepted.
    """
    if os.environ.get(CIPHER_VARIABLE) != TLS13_ONLY:
        if "grpc._cython.cygrpc" in sys.modules:
            raise RuntimeError(
                f"grpc was imported before shovey_trio.rpc, so TLS 1.2 can no longer be ruled out: import shovey_trio "
                f"first, or start the process with {CIPHER_VARIABLE}={TLS13_ONLY}"
            )
        os.environ[CIPHER_VARIABLE] = TLS13_ONLY
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


prepare_environment()
