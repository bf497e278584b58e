"""What all four systems share: the parts of a training run, one per file. `kit` imports none of the other packages."""
