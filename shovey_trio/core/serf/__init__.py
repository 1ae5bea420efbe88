"""Serf's RPC protocol and the exact size of its messages; the doorbell that travels in them."""
