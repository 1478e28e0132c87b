"""Trying failed steps again: whether, and when the next attempt is due."""
