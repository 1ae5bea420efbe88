"""The wing's commands of ``shovey-trio``."""
