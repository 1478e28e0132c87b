"""What users call: the `Runner`, and the functions around it."""
