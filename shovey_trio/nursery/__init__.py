"""The heart: every job is a nursery, every run a task in it. One subject, so one folder, with 23 short modules."""
