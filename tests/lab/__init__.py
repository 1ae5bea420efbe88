"""The laboratory: fakes, rigs, faults and chaos. Beside the tests, not in the wheel."""
