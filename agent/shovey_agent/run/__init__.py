"""Runs on this node: executor, spool, followers."""
