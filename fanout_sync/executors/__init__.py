"""How steps run: the seam `AgentExecutor`, executors from the box, one attempt at a step."""
