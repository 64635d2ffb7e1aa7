"""A model's name becomes its files in the cache: listed, chosen, fetched, linked.

The order is what makes a kill at any moment harmless: bytes gather under a name
of their own, get their final name once their hash is right, then their link,
and the revision points to the commit last of all.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyllama.errors import HubError
from pyllama.hub.cache import Repository
from pyllama.hub.choose import INDEX, settings_files, weight_files
from pyllama.hub.disk import check_space, disk_errors
from pyllama.hub.download import Source, download
from pyllama.hub.find import INDEX_LIMIT, NotInCacheError, find, named, read_shards
from pyllama.hub.listing import HubFile, Listing, check, list_files, refusal, url_of
from pyllama.hub.names import DEMO
from pyllama.hub.remote_file import RemoteFile
from pyllama.terminal.progress import Progress


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is about to be fetched.

    nbytes   in all, less what is here
    weights  files of the repository, in order; its config.json, if it has one, is in `folder` already
    open     opens a file where it is
    """

    name: str
    nbytes: int
    folder: Path
    weights: list[str]
    open: Callable[[Path], RemoteFile]


def pull(
    name: str,
    progress: Progress | None,
    patterns: Sequence[str],
    weights: bool,
    before: Callable[[Wanted], None] | None,
) -> Path:
    """What `pyllama.hub.pull` does."""
    progress = progress or Progress(quiet=True)
    if name == DEMO:
        from pyllama.hub.demo import pull_demo

        return pull_demo(progress)
    model = named(name)
    progress.label = str(model)
    listing = list_files(model, progress.note)
    progress.note("")
    with disk_errors(str(model)):
        fetcher = Fetcher(listing, progress)
        snapshot = fetcher.snapshot
        chosen = settings_files(listing.files)
        if not weights:
            fetcher.fetch([*chosen, *([INDEX] if INDEX in listing.files else [])])
            return snapshot  # the revision is not moved: what it points to may be whole
        extra = weight_files(model, list(listing.files), patterns, lambda: _shards(fetcher))
        if any(file.endswith(".safetensors") for file in extra) and INDEX in listing.files:
            chosen.append(INDEX)
        everything = list(dict.fromkeys([*chosen, *extra]))
        if before is not None:
            nbytes = fetcher.missing_nbytes(everything)
            fetcher.fetch(file for file in chosen if file == "config.json")

            def opened(path: Path) -> RemoteFile:
                return RemoteFile(listing, path.as_posix(), progress.note)

            before(Wanted(str(model), nbytes, snapshot, extra, opened))
        fetcher.fetch(everything)
        fetcher.repository.set_commit(model.revision, listing.commit)
    try:
        return find(model)
    except NotInCacheError:
        if patterns:
            return snapshot  # asked for some of the files, which need not make a model
        raise


class Fetcher:
    """Brings files of one listing into the cache, one after the other.

    part  whether that is only part of what the progress line is about: then its total is somebody else's
    """

    def __init__(self, listing: Listing, progress: Progress, *, part: bool = False) -> None:
        self.listing = listing
        self.repository = Repository(listing.model.repository)
        self.snapshot = self.repository.snapshot(listing.commit)
        self._progress, self._part = progress, part

    def missing_nbytes(self, names: Iterable[str]) -> int:
        """How much fetch() would have to bring. Raises HubError for too little space, and for what could do harm."""
        return sum(file.nbytes for file in self._missing(self._files(names)))

    def fetch(self, names: Iterable[str]) -> None:
        """Every named file that is missing, in the order given; after a HubError the next call goes on."""
        files = self._files(names)
        missing, nbytes = self._missing(files), sum(file.nbytes for file in files)
        if not self._part:
            # What earlier calls brought is on the line already, so that it never runs backwards.
            self._progress.total = self._progress.done + nbytes
        self._progress.skip(nbytes - sum(file.nbytes for file in missing))
        for file in missing:
            self._fetch(file)

    def _files(self, names: Iterable[str]) -> list[HubFile]:
        files = [self.listing.files[name] for name in names]
        for file in files:
            check(file, self.listing)
        return files

    def _missing(self, files: list[HubFile]) -> list[HubFile]:
        """Those that are not here, for which there is space."""
        missing = [file for file in files if not self._holds(file)]
        self._check_space(missing)
        return missing

    def _holds(self, file: HubFile) -> bool:
        return self.repository.holds(self.listing.commit, file.name, file.nbytes, file.digest)

    def _fetch(self, file: HubFile) -> None:
        repository, listing, progress = self.repository, self.listing, self._progress
        progress.label = file.name
        label = f"{listing.model}: {file.name}"

        def denied(status: int, gated: bool) -> HubError:
            if status == 404:
                return HubError(f"{label}: listed by {listing.endpoint}, but not there (HTTP 404)")
            return refusal(listing.model, listing.endpoint, status, gated or listing.gated)

        source = Source(label, url_of(file, listing), file.nbytes, file.digest, listing.headers, denied)
        partial = repository.partial(file.digest)
        partial.parent.mkdir(parents=True, exist_ok=True)
        with repository.locked(file.digest, lambda: progress.note("waiting for another pull of the same file")):
            progress.note("")
            if self._holds(file):  # the other pull brought it
                progress.skip(file.nbytes)
                return
            download(source, partial, progress)
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
        check_space(str(self.listing.model), self.repository.folder, need, "HF_HUB_CACHE")


def _shards(fetcher: Fetcher) -> set[str]:
    """The files named by the index, which is fetched for that."""
    nbytes = fetcher.listing.files[INDEX].nbytes
    if isinstance(nbytes, int) and nbytes > INDEX_LIMIT:
        raise HubError(f"{fetcher.listing.model}: {INDEX} is {nbytes} bytes, no index is larger than {INDEX_LIMIT}")
    fetcher.fetch([INDEX])
    return read_shards(fetcher.snapshot / INDEX)
