"""What runs the units of a run: processes of this machine, or a Ray cluster."""
