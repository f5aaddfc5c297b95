"""The audit: checks that expose gradient masking and broken evaluations."""
