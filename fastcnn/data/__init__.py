"""Data: from files to batches on the device."""
