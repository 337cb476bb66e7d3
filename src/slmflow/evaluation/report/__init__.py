"""An evaluation as HTML and Markdown, in words that the terminal shares."""
