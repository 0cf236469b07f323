"""Formats that are folders, with a file or more for each image."""
