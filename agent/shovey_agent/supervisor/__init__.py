"""One small process per run. Small modules of the standard library only: it is forked for every run."""
