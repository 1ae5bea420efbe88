"""The wing's benchmarks, with a real goiardi as the peer."""
