"""Data for training a refiner: scenes, coarse-mask simulation, the patch set, augmentation."""
