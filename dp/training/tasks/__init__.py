"""Training tasks: one file per task. A task draws its batches, has a loss, and judges what was trained."""
