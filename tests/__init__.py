"""The tests, in the folders of dp/."""
