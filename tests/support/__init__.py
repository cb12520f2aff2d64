"""Helpers shared by the tests: fakes, harnesses and laws. Not collected by pytest."""
