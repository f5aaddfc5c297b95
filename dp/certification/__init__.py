"""Certified robustness by randomized smoothing: an l2 radius within which no attack can change the prediction."""
