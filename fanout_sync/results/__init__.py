"""The result of a run, and its summary for people."""
