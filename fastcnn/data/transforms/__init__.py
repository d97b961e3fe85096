"""Transforms: crops, augmentation and mixing, for every loader the same."""
