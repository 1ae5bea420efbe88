"""Emulated old nodes in front of our daemon, or of a real goiardi: what `shovey-trio bench legacy` measures."""
