"""Files from the hub into its client's cache; what was begun goes on where it broke off.

The client downloads into a file of a random name and deletes it when it fails, so it cannot go on
after a crash (huggingface_hub.file_download._download_to_tmp_and_move). Large files are therefore
fetched here, over plain HTTP, into the place and under the lock that the client uses; it then finds
them. Of what the hub offers through Xet it hands out the bytes as well, for clients without Xet.
"""

from collections.abc import Callable
from pathlib import Path

from slmflow.errors import SourceError, first_line
from slmflow.hub.cached import snapshot, storage
from slmflow.hub.repository import gated
from slmflow.hub.sums import measure
from slmflow.lock_file import Contents, Sum

WORKERS = 4


def transfer(source: str, contents: Contents, announce: Callable[[str], None]) -> None:
    """Fetch what is not there. Raises ``SourceError`` where the connection breaks for good."""
    import httpx
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError

    folder = snapshot(source, contents.commit)
    try:
        for name, about in contents.files.items():
            # The client writes in steps of that size: of less, there is nothing to go on with.
            if about.size > constants.DOWNLOAD_CHUNK_SIZE and not (folder / name).exists():
                _fetch_large(source, contents.commit, name, about, announce)
        snapshot_download(
            source,
            revision=contents.commit,
            allow_patterns=sorted(contents.files),
            max_workers=WORKERS,
        )
    except GatedRepoError:  # the hub lists the files of a gated repository to everybody
        raise gated(source) from None
    except (httpx.HTTPError, OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # disk full and the like have their own message
        raise SourceError(
            f"the download of {source} broke off ({first_line(error)}); what arrived is kept, "
            "repeat the command to go on"
        ) from None


def _fetch_large(
    source: str, commit: str, name: str, about: Sum, announce: Callable[[str], None]
) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils._fixes import WeakFileLock

    url = hf_hub_url(source, name, revision=commit)
    told = get_hf_file_metadata(url)
    if told.etag is None:
        return
    blob = storage(source) / "blobs" / told.etag
    lock = storage(source).parent / ".locks" / storage(source).name / f"{told.etag}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    blob.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if not blob.exists():
            _continue(url, blob, name, about, announce)


def _continue(url: str, blob: Path, name: str, about: Sum, announce: Callable[[str], None]) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    partial = blob.with_name(f"{blob.name}.incomplete")
    begun = partial.stat().st_size if partial.exists() else 0
    if begun > about.size:
        partial.unlink()
        begun = 0
    if begun:
        announce(f"{name}: {begun / 1e9:.2f} of {about.size / 1e9:.2f} GB are here, going on")
    with partial.open("ab") as file:
        http_get(
            url,
            file,
            resume_size=begun,
            headers=build_hf_headers(),
            expected_size=about.size,
            displayed_filename=name,
        )
    if measure(partial, about) != about:
        partial.unlink()
        raise SourceError(
            f"{name} arrived with another checksum than the hub says ({about.sha256}), so it is "
            "thrown away; repeat the command, and see whether a proxy changes what it passes on"
        )
    partial.replace(blob)
