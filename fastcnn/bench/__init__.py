"""Measurement of a training step: variants timed in turn, rooflines, traces, scaling."""
