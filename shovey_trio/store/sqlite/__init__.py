"""What is particular to SQLite: files, locks, pragmas."""
