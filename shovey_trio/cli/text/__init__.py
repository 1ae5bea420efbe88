"""What both programs print with: formats, times, failures, safe text."""
