"""Shovey's words, as pure values: orders and heartbeats over serf, reports and requests over HTTP."""
