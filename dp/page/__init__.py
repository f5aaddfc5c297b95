"""The page: finished runs as a folder of static files, which a browser opens from disk."""
