"""What is solved: costs, their curvature, a user's data; networks, their symmetries, geometry, stationary points."""
