"""A run directory to events and weights; the only half that imports torch."""
