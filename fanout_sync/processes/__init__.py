"""Processes of this system: starting them, finding all that they have started, and killing that."""
