"""Scripts, each run in an interpreter of its own; each prints one JSON object."""
