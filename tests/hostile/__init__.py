"""Broken and hostile files, made by the tests."""
