"""What is sent of an executor, and of the caller's code that it needs: `executor` and `loading` are the two ends."""
