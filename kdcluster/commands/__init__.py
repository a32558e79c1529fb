"""What the larger commands do with their options: they call, and say what came of it."""
