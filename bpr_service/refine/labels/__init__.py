"""The steps for label maps, whose labels compete for pixels."""
