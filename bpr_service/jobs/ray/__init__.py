"""Ray drives the parts of a run, and refines columns of its data sets."""
