"""Fixtures for all tests, and one thread for each process: tests run side by side, and idle threads would spin."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["tests.services"]
