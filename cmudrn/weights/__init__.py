"""Shipped weights and graphs; data only."""
