"""Export of trained networks to files that run without fastcnn, each compared with PyTorch and timed."""
