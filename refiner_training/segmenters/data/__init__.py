"""Training data of segmenters: what is read, how it is changed, in which order it comes."""
