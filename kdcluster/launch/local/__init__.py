"""This machine as a place where runs run."""
