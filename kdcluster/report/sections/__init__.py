"""The sections of an experiment in a page, in HTML."""
