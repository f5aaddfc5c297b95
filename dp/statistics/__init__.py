"""Accuracies, intervals and curves of finished rows. Pure functions."""
