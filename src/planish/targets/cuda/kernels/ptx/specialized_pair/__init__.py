"""Two convolutions of single pixels, one after the other."""
