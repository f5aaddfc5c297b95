"""Threat models: what the attacker may do to an image."""
