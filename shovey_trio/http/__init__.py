"""HTTP/1.1 on trio: listener, connections, bounds. Knows no application."""
