"""Grids of flows: lanes, chunks, the store of finished chunks, clusters."""
