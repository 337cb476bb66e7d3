"""A recorded run, run again: what it was, what has changed since, what came out the same."""
