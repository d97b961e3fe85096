"""Detection: boxes, anchors, losses, average precision."""
