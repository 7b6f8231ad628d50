"""Fewer hidden directions, the same A: networks projected or drawn in law, and flows that grow them as needed."""
