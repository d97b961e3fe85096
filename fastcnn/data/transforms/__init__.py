"""Transforms: crops, augmentation and mixing, identical for all loaders."""
