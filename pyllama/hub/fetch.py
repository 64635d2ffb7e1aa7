"""A model's name becomes its files in the cache: listed, chosen, fetched, linked.

The order is what makes a kill at any moment harmless: bytes gather under a name
of their own, get their final name once their hash is right, then their link,
and the revision points to the commit last of all.
"""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pyllama.errors import HubError, reason_of
from pyllama.hub.cache import Repository
from pyllama.hub.choose import INDEX, settings_files, weight_files
from pyllama.hub.download import AccessDeniedError, Source, download
from pyllama.hub.find import INDEX_LIMIT, NotInCacheError, find, named, read_shards
from pyllama.hub.listing import HubFile, Listing, access_error, check, list_files, url_of
from pyllama.hub.names import DEMO
from pyllama.progress import Progress, format_nbytes


def pull(
    name: str, progress: Progress | None = None, *, patterns: Sequence[str] = (), weights: bool = True
) -> Path:
    """What `pyllama.hub.pull` does."""
    progress = Progress(quiet=True) if progress is None else progress
    if name == DEMO:
        from pyllama.hub.demo import pull_demo

        return pull_demo(progress)
    model = named(name)
    progress.label = str(model)
    listing = list_files(model, progress.note)
    progress.note("")
    with _disk_errors(str(model)):
        fetcher = Fetcher(listing, progress)
        snapshot = fetcher.snapshot
        chosen = settings_files(listing.files)
        if not weights:
            fetcher.fetch([*chosen, *([INDEX] if INDEX in listing.files else [])])
            return snapshot  # the revision is not moved: what it points to may be whole
        extra = weight_files(model, list(listing.files), patterns, lambda: _shards(fetcher))
        if any(file.endswith(".safetensors") for file in extra) and INDEX in listing.files:
            chosen.append(INDEX)
        fetcher.fetch(dict.fromkeys([*chosen, *extra]))
        fetcher.repository.set_commit(model.revision, listing.commit)
    try:
        return find(model)
    except NotInCacheError:
        if patterns:
            return snapshot  # asked for some of the files, which need not make a model
        raise


class Fetcher:
    """Brings files of one listing into the cache, one after the other."""

    def __init__(self, listing: Listing, progress: Progress) -> None:
        self.listing = listing
        self.repository = Repository(listing.model.repository)
        self.snapshot = self.repository.snapshot(listing.commit)
        self._progress = progress

    def fetch(self, names: Iterable[str]) -> None:
        """Every named file that is missing, in the order given; after a HubError the next call goes on."""
        files = [self.listing.files[name] for name in names]
        for file in files:
            check(file, self.listing)
        missing = [file for file in files if not self._holds(file)]
        self._check_space(missing)
        # What earlier calls brought is on the line already, so that it never runs backwards.
        self._progress.total = self._progress.done + sum(file.nbytes for file in files)
        self._progress.skip(sum(file.nbytes for file in files) - sum(file.nbytes for file in missing))
        for file in missing:
            self._fetch(file)

    def _holds(self, file: HubFile) -> bool:
        return self.repository.holds(self.listing.commit, file.name, file.nbytes, file.digest)

    def _fetch(self, file: HubFile) -> None:
        repository, listing, progress = self.repository, self.listing, self._progress
        progress.label = file.name
        label = f"{listing.model}: {file.name}"
        source = Source(label, url_of(file, listing), file.nbytes, file.digest, listing.headers)
        partial = repository.partial(file.digest)
        partial.parent.mkdir(parents=True, exist_ok=True)
        with repository.locked(
            file.digest, lambda: progress.note("waiting for another pull of the same file")
        ):
            progress.note("")
            if self._holds(file):  # the other pull brought it
                progress.skip(file.nbytes)
                return
            try:
                download(source, partial, progress)
            except AccessDeniedError as error:
                if error.status == 404:
                    raise HubError(
                        f"{label}: listed by {listing.endpoint}, but not there (HTTP 404)"
                    ) from error
                gated = error.gated or listing.gated
                raise access_error(listing.model, listing.endpoint, error.status, gated) from error
            repository.keep(file.digest)
            repository.link(listing.commit, file.name, file.digest)

    def _check_space(self, missing: Sequence[HubFile]) -> None:
        need = 0
        for digest, nbytes in {file.digest: file.nbytes for file in missing}.items():
            try:
                need += max(0, nbytes - self.repository.partial(digest).stat().st_size)
            except FileNotFoundError:
                need += nbytes
        if not need:
            return
        self.repository.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.repository.folder).free
        if need > free:
            raise HubError(
                f"{self.listing.model}: {format_nbytes(need)} to fetch, but {format_nbytes(free)} free in "
                f"{self.repository.cache}; free some, or set HF_HUB_CACHE to a folder on a larger disk"
            )


def _shards(fetcher: Fetcher) -> set[str]:
    """The files named by the index, which is fetched for that."""
    nbytes = fetcher.listing.files[INDEX].nbytes
    if isinstance(nbytes, int) and nbytes > INDEX_LIMIT:
        raise HubError(
            f"{fetcher.listing.model}: {INDEX} is {nbytes} bytes, no index is larger than {INDEX_LIMIT}"
        )
    fetcher.fetch([INDEX])
    return read_shards(fetcher.snapshot / INDEX)


@contextmanager
def _disk_errors(label: str) -> Iterator[None]:
    """What the file system refuses becomes one line; the network's failures are the downloader's to tell."""
    try:
        yield
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        again = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            again = "; free some space and give the same command again, it goes on from here"
        raise HubError(f"{label}: {where}{reason_of(error)}{again}") from error
