"""Coverage-guided fuzzing of every decoder that reads bytes from a peer, or from a disk that others could write on.

``tools/fuzz.sh`` runs the targets; ``targets`` is their table. Developers' code: it is not installed.
"""
