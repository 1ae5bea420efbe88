"""``shovey-trio bench``: what this version does per second on this machine, measured on the real daemon."""
