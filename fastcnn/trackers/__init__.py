"""Experiment trackers: records, pictures and texts of a run, sent by threads that never hold it up."""
