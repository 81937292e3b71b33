"""Training an oracle on measured answers."""
