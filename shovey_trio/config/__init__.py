"""Settings: types, sources, and the models of the controller and the client."""
