"""Use of trained networks: open them, and open the images that they are judged by."""
