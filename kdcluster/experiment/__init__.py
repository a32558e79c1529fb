"""The experiment file: its fields, how it is read, and its search space."""
