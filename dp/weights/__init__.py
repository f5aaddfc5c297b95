"""From a weights file to a network. Nothing in a file is executed."""
