"""Which masks of a data set are wrong: the refiner's own output, read the other way round."""
