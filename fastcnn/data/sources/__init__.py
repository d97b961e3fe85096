"""Sources: the images of a data set and their targets."""
