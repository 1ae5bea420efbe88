"""Command lines: two programs, and the text tools that they share."""
