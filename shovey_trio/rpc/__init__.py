"""gRPC: the bridge into trio, and what is built on it."""
