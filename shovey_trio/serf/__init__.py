"""A serf agent over its RPC port: connection, membership, queries and their pace."""
