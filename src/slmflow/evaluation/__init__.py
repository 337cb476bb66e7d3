"""Quality, speed and agreement of packaged models."""
