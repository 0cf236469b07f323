"""Segmenters: models that make coarse masks, each with a plain head and the boundary-aware heads it can host."""
