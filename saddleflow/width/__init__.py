"""Fewer hidden directions, the same A: networks projected or drawn in law, and their certified flows."""
