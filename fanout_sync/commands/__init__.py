"""The commands of the command line, one module each; a checkpoint has two."""
