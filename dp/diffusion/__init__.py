"""Denoisers, sampling steps and the reverse process."""
