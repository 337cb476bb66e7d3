"""MLflow's errors in few words."""

import re

CAUSE = re.compile(r"\[Errno -?\d+\] [^'\")]+")  # at the bottom of what its HTTP client tells


def reason(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    cause = CAUSE.search(text)
    return cause.group(0) if cause else text.splitlines()[0]
