"""Time of training steps by activity, and the diagnosis of the bottleneck."""
