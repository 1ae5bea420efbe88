"""The agent as a schob: signed orders over serf, reports over signed HTTP (``protocol = "shovey"``)."""
