"""What a network is made of and what it costs: layers, shapes, operations, receptive fields, times."""
