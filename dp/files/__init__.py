"""Bring weights and data to disk: the cache folder, downloads and archives."""
