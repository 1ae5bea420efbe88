"""What others see of a process: logs, stalls of its loop, systemd; and failpoints for tests."""
