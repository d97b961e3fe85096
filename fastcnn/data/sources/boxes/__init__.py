"""Sources with boxes: one reader per format."""
