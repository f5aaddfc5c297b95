"""The contracts of plug-ins and of our own methods: what is checked, and what a yaml may declare as an exception."""
