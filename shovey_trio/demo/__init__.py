"""A whole fleet of real processes on loopback: for ``shovey-trio demo``, benchmarks and tests."""
