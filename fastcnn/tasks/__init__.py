"""Tasks: targets, loss, metrics and drawings of classification, segmentation and detection."""
