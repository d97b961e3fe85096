"""Measurement of a training step: variants timed in turn, roofline and trace."""
