"""The REST shim: what knife-shove and schob speak, served by h11 on trio."""
