"""How the long-lived processes of the agent begin and end."""
