"""How a schob is reached, and how what it reports finds its run."""
