"""Tests; a package so that `tests.tiny` can be imported from every folder below."""
