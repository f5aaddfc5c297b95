"""Figures, drawn from arrays alone: one module for each, whose `draw` makes it of what its npz holds."""
