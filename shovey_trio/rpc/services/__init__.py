"""The gRPC services: requests in, use cases called, answers out. No policy, no state."""
