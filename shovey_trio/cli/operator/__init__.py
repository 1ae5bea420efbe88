"""``shovey``: the operator's program. One file per command, imported when it is called."""
