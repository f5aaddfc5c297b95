"""Purifiers: one file per method, one public function `purify(x, denoiser, classifier, rng, *, on_step=None, ...) ->
x_hat`.
"""
