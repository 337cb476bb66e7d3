"""Batch prediction: a file or folder of rows in, the same rows with their answers out."""
