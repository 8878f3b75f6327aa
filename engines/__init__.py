"""Engines: the spec, the typed graph, plans and the store of them."""
