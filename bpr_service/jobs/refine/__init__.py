"""Refining a prediction file: plan, parts, merge."""
