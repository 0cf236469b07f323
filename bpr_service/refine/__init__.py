"""Boundary Patch Refinement, one module a step of the paper."""
