"""The work behind :mod:`refiner_training.evaluate`, one module a task."""
