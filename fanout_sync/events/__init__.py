"""Events of running steps: their types, their senders, and the channel that carries them."""
