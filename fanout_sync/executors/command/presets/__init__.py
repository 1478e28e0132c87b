"""What is known of the command-line agents that `Command` has presets for: one module for each program."""
