"""Analysis of networks: layers, shapes, multiply-adds, receptive fields, layer times."""
