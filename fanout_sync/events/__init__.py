"""What happens while steps run: the types of events, the channel that carries them, who sends them."""
