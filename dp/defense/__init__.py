"""Defenses: purify, then classify; what an attacker may ask of them."""
