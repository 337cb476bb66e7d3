"""Names of figures, and which way they are better: one truth for evaluation, gate and sweep."""

LOWER_IS_BETTER = frozenset(
    {
        *("errors", "perplexity", "first_token_seconds", "inter_token_seconds", "answer_seconds"),
        *("load_seconds", "peak_memory_bytes", "device_memory_bytes", "size_bytes"),
    }
)
"""Names of figures. Of every other one, more is better."""
