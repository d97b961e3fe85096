"""One module per command: `run(argv)` parses its flags and returns the exit status. Torch is loaded late."""
