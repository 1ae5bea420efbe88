"""What a node is willing to run: entries, argument templates, permitted values."""
