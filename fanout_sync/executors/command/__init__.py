"""An executor whose agents are programs: `CommandExecutor`, and the `Command` of each."""
