"""Whether this machine can do what is configured, and what mends it where it cannot."""
