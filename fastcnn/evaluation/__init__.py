"""Evaluation of a trained network: metrics for each class, pictures, and a file for machines."""
