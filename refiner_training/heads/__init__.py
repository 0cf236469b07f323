"""Boundary-aware segmentation heads: BMask R-CNN, BoundarySqueeze, BEIS and B2Inst.

A head is a module that an architecture of :mod:`refiner_training.segmenters` hosts. Heads share
:mod:`~refiner_training.heads.targets`, :mod:`~refiner_training.heads.losses`,
:mod:`~refiner_training.heads.layers` and :mod:`~refiner_training.heads.protocol`, and never import each other.
"""
