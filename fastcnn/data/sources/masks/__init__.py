"""Sources with masks: files, and outlines that are drawn."""
