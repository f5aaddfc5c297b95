"""Denoisers, sampling steps and the reverse process of diffusion models."""
