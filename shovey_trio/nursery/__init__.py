"""The heart: every job is a nursery, every run a task in it."""
