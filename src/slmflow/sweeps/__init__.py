"""A sweep: points, one parent run, one child run a point, whatever runs them."""
