"""One training run for refiners and segmenters: trainer, schedule, averaging, progress, checkpoint, export."""
