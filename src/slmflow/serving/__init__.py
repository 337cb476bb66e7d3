"""A packaged model behind OpenAI's HTTP API."""
