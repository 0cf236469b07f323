"""Scenes: images with true masks, and the endless stream of patches that is cut from them."""
