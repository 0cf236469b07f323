"""The refinement networks, a model version, and what runs them."""
