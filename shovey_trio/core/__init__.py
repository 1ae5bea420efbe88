"""What is decided, as functions of values: no I/O, no clock, no randomness. Imports nothing but itself."""
