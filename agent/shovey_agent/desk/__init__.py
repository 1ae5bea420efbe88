"""The desk: where signed orders are judged, in this process or in a root launcher."""
