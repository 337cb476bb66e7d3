"""Files that are there to hold secrets, by their names: their content is never recorded, as nothing
tells a bare password from a word."""

from fnmatch import fnmatch
from pathlib import PurePosixPath

from slmflow.secret_names import names_secret

PRIVATE = (
    *("*secret*", "*credential*", "*.env", ".env.*", ".envrc", "*.pem", "*.key", "*.p12", "*.pfx"),
    *("*.jks", "*.keystore", "*.kdbx", "*.ppk", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*"),
    *(".netrc", "_netrc", ".pgpass", ".my.cnf", ".npmrc", ".pypirc", ".htpasswd", ".databrickscfg"),
    *("kaggle.json", ".ssh", ".aws", ".azure", ".gnupg", ".kube", ".docker"),
)
"""Of a file, or of a folder that it lies in."""


def is_private(name: str) -> bool:
    """``name``: a path, of which every part is looked at. Code may be about passwords."""
    path = PurePosixPath(name)
    if any(fnmatch(part.lower(), pattern) for part in path.parts for pattern in PRIVATE):
        return True
    return path.suffix != ".py" and names_secret(path.stem)
