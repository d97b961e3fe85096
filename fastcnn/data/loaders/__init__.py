"""Loaders: batches from a source, by DALI, torchvision or from memory."""
