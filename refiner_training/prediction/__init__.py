"""The work behind :mod:`refiner_training.predict`: the model on its devices, and its predictions as files."""
