"""How well a model tells, how far its probabilities can be trusted, for whom, and what of that a site hands out."""
