"""Processes: one for each device, and the one that looks after several."""
