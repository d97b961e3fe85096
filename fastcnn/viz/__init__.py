"""Pictures of samples, and plots of training curves."""
