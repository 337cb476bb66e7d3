"""Downloads from the Hugging Face hub: pinned to a commit, complete and unchanged, or not used.

The files lie in the hub client's own cache, shared with every other tool.
"""

from slmflow.hub.fetch import Announce, Snapshot, contents, download
from slmflow.hub.repository import Gated, NoRepository, Unreachable
from slmflow.hub.wanted import Wanted

__all__ = [
    "Announce",
    "Gated",
    "NoRepository",
    "Snapshot",
    "Unreachable",
    "Wanted",
    "contents",
    "download",
]
