"""Formats whose files hold records, each with the masks of an image or with one mask."""
