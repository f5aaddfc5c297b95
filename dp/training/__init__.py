"""Training of the networks that nobody has published."""
