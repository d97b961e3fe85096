"""Reports on runs from what they left in their folders: a page, a comparison, a list. Torch-free."""
