"""The loop that attacks, scores with fresh noise and writes rows."""
