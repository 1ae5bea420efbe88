"""Durable storage: what is promised (``contract``), the SQL that keeps it (``sql``), and the databases under it."""
