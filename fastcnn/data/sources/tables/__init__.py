"""Sources whose labels are in a table."""
