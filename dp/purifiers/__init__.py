"""Purification methods, one file each.

The interface is `purify(x, denoiser, classifier, rng, *, on_step=None, ...) -> x_hat`, with the method's
hyperparameters as keyword arguments.
"""
