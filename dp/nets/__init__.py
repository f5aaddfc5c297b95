"""Network definitions, written from the papers and from the names and shapes in the public checkpoints."""
