"""Callers that sign with a Chef key, and the Chef server behind us. Shared by the wings."""
