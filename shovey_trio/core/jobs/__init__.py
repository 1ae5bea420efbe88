"""Jobs and runs: their states, the machines that move them, and what selects, counts and reads them."""
