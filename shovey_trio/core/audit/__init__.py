"""The audit log: its records, their chain, its signed head, and the digest of runs."""
