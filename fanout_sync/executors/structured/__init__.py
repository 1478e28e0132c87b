"""Structured output: finding JSON in the text of an agent, and checking it against the schema of its spec."""
