"""Training of networks for which no weights are published."""
