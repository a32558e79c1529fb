"""Runs to commands, and commands to processes; never imports torch."""
