"""Checks of an installation and its machine, each in a process of its own."""
