"""The HTTP service: parse, call the engine, print."""
