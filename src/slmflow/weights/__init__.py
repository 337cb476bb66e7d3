"""Weights are stored once, by their content, however many models are packaged from them."""
