"""What keeps a model warm and a device busy: the engine, its batches, its device, the model store."""
