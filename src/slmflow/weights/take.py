"""What a model is made of, by content, in this machine's store."""

import os
from concurrent.futures import ThreadPoolExecutor

from slmflow.errors import SourceError
from slmflow.served.digests import file_sha256
from slmflow.served.weights import LARGE, File, Manifest, WeightsError, keep
from slmflow.sources import LocalModel


def take(weights: LocalModel, folder: str) -> Manifest:
    """The manifest of the weights, whose large files are then in the store. ``folder``: where the
    packaged model has them.

    Raises ``SourceError`` where a file is written meanwhile.
    """

    def take_one(name: str) -> File:
        path = (weights.path / name).resolve()
        read = path.stat()
        about = File(read.st_size, file_sha256(path))
        if about.size >= LARGE:
            keep(path, about, read, frozen=weights.frozen)
        return about

    try:
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            files = dict(zip(weights.files, pool.map(take_one, weights.files), strict=True))
    except WeightsError as error:
        raise SourceError(str(error)) from None
    return Manifest(weights.source, weights.revision, files, folder)
