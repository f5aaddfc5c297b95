"""What a person types: one module for each command, with `main`, which returns the exit code."""
