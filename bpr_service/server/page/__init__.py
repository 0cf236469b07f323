"""The page at ``/``: plain files, and the route that serves them."""
