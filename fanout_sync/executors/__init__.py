"""The interface of executors, the executors of this package, and one attempt at a step."""
