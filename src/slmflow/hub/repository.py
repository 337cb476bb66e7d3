"""What the hub says of a repository, and what it refuses."""

from typing import Any

from slmflow.errors import SourceError, first_line
from slmflow.lock_file import Contents, Sum

PATIENCE = 30  # seconds


class NoRepository(SourceError):
    """The hub has no repository of that name, or hides it."""


class Gated(SourceError):
    """The hub shows the repository to those only who accepted its licence."""


class Unreachable(SourceError):
    """The hub does not answer, or must not be asked."""


def ask(source: str, revision: str | None) -> Contents:
    """The commit that the revision means now, and all of its files.

    Raises ``SourceError``, of which the three above are some.
    """
    import httpx
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if constants.HF_HUB_OFFLINE:
        raise Unreachable("HF_HUB_OFFLINE is set")
    try:
        info = HfApi().model_info(source, revision=revision, files_metadata=True, timeout=PATIENCE)
    except RevisionNotFoundError:
        raise SourceError(
            f"{source} has no revision {revision!r}; give a branch, a tag or a full commit "
            "(model.revision=...), or null for the default branch"
        ) from None
    except GatedRepoError:
        raise gated(source) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise NoRepository(f"the hub shows no repository {source}") from None
    except (httpx.HTTPError, OSError, ValueError) as error:  # ValueError: it answers no JSON
        raise Unreachable(f"the hub does not answer ({first_line(error)})") from None
    return Contents(str(info.sha), {file.rfilename: _sum(file) for file in info.siblings or []})


def gated(source: str) -> Gated:
    return Gated(f"{source} is gated: accept its licence on its page, then set HF_TOKEN")


def _sum(file: Any) -> Sum:
    if file.lfs is not None:
        return Sum(file.lfs.size, sha256=file.lfs.sha256)
    return Sum(file.size or 0, git_sha1=file.blob_id)
