"""From bodies to pictures and masks, and from results to answers."""
