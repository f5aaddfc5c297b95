"""Sanitizing of a training set that may be poisoned: poison, label transitions, and the figures of a report."""
