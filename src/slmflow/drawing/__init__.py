"""What every page and plot of this project shares: its look, its SVG, its numbers."""

from pathlib import Path

STYLE_SHEET = Path(__file__).with_name("page.css")
