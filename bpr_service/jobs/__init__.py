"""Durable work: prediction files refined, models retrained."""
