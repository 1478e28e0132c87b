"""What a run returns, and how people look at it."""
