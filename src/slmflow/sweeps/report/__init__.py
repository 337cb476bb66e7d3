"""A sweep as CSV and HTML, in words that the terminal shares."""
