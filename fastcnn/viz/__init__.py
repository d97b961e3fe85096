"""Images of samples and of training curves."""
