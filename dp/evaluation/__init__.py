"""The loop that attacks images, scores them with fresh noise, and makes rows."""
