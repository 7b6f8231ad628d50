"""The limit of small starts: greedy paths from saddle to saddle, and flows compared with them."""
