"""``shovey-trio``: the program of the controller's host. One file per command, imported when it is called."""
