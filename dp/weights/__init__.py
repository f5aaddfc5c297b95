"""From a file of weights to a network; nothing in the file is executed."""
