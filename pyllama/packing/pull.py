"""A model's name on the Hub -> a packed folder, one source file at a time, so that a disk need not hold both.

A file is fetched into the Hub's cache, packed, compared and deleted there, before the next one is fetched. That
takes safetensors in several files, where each tensor lies in one of them; anything else is fetched as a whole and
packed then.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyllama import hub
from pyllama.architecture import FAMILIES
from pyllama.architecture.config import Config
from pyllama.architecture.tensors import EMBEDDING, HEAD, tensor_shapes
from pyllama.checkpoint import Tensor, open_checkpoint
from pyllama.checkpoint.dtypes import PLAIN
from pyllama.checkpoint.files import InputFile
from pyllama.checkpoint.huggingface import INDEX, read_config, read_weight_map
from pyllama.checkpoint.index import is_ignored
from pyllama.checkpoint.packed import Carried, Shard, header_of, shard_name
from pyllama.checkpoint.safetensors import read_safetensors
from pyllama.checkpoint.wrapped_names import plain_names
from pyllama.errors import CheckpointError, PackError, UnsupportedError, shown
from pyllama.hub.cache import Repository
from pyllama.hub.find import NotInCacheError, named
from pyllama.hub.names import DEMO, ModelName, parse_name
from pyllama.packing.carry import folder_files
from pyllama.packing.pack import delete, describe, pack, write_checked
from pyllama.packing.rows import SourceFiles, state_of
from pyllama.packing.shard import SHARE, shard_fields
from pyllama.packing.verify import first_wrong, index_bytes
from pyllama.packing.workplace import JOURNAL, Workplace, disk_errors
from pyllama.terminal.progress import Progress, format_nbytes

PASSES = 3  # over the bytes of a file: fetched, packed, compared


def pull_packed(
    name: str,
    destination: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    patterns: Sequence[str] = (),
) -> Path:
    """Fetch a model and pack it on the way; returns the folder it is in now.

    name, patterns  as for pyllama.hub.pull. What was in the cache before stays there.
    destination     a folder to be made; nothing lies under that name before all is there

    Raises HubError, CheckpointError, RequestError or PackError; the next call goes on where this one stopped.
    """
    progress = progress or Progress(quiet=True)
    begun = _packing_of(name, Workplace(destination))
    if begun:
        return pack(begun["asked"], destination, replace=begun["replace"], progress=progress)
    if name != DEMO and not patterns and not named(name).quantization:
        path = _by_file(parse_name(name), destination, progress)
        if path:
            return path
    try:
        hub.resolve(name)
        ours = False
    except NotInCacheError:
        ours = True
    path = hub.pull(name, progress, patterns=patterns)
    same = os.path.realpath(hub.resolve(name)) == os.path.realpath(path)
    progress.label = "packing"
    return pack(name if same else path, destination, replace=ours, progress=progress)


def _packing_of(name: str, work: Workplace) -> dict[str, Any] | None:
    """The journal of an earlier call for this name that had everything fetched and was packing."""
    if not (work.folder / JOURNAL).exists():
        return None
    journal = work.journal()
    if not isinstance(journal, dict) or journal.get("work") != "pack":
        return None
    cached = [] if name == DEMO else [Repository(parse_name(name).repository).folder]
    if journal.get("asked") != name and not any(f in Path(journal.get("path", "")).parents for f in cached):
        raise PackError(f"{work.folder}: holds the beginning of another model, {journal.get('asked')}")
    return journal


def _by_file(model: ModelName, destination: str | os.PathLike[str], progress: Progress) -> Path | None:
    """Fetch, pack and delete file by file; None where the model's files do not allow it."""
    from pyllama.hub.fetch import Fetcher
    from pyllama.hub.listing import list_files

    with Workplace(destination) as work, disk_errors(work.destination):
        old = work.journal()
        work.drop_partial()
        try:
            if old is not None and (old.get("work"), old.get("name")) != ("pull", str(model)):
                raise PackError(f"{work.folder}: holds the beginning of something else, {old.get('name')}")
            progress.label = str(model)
            pinned = ModelName(model.repository, old["commit"]) if old else model
            listing = list_files(pinned, progress.note)
            progress.note("")
            fetcher = Fetcher(listing, progress, part=True)
            job = _Job.prepare(fetcher, old, work) if INDEX in listing.files else None
            if job is None:
                work.abandon()
                return None
            job.run(progress)
            work.finish()
        except BaseException:
            if work.folder.exists():
                work.drop_partial()
                if not any(name.endswith(".safetensors") for name in os.listdir(work.folder)):
                    work.abandon()
            raise
    return work.destination


@dataclass
class _Job:
    """One model on its way: its config and where each tensor is are known, its weights come file by file.

    places  name -> the file that holds it, in the order of a pass
    sizes   bytes of each of these files, in that order
    kept    those that were in the cache before, and stay there
    """

    fetcher: Any
    work: Workplace
    config: Config
    places: dict[str, str]
    sizes: dict[str, int]
    kept: list[str]
    carried: dict[str, Carried]

    @classmethod
    def prepare(cls, fetcher: Any, old: dict[str, Any] | None, work: Workplace) -> "_Job | None":
        from pyllama.hub.choose import settings_files

        fetcher.fetch([*settings_files(fetcher.listing.files), INDEX])
        folder = fetcher.snapshot
        config, weight_map = read_config(folder), read_weight_map(folder)
        tied = config.tie_word_embeddings
        if len(set(weight_map.values())) < 2 or (tied and HEAD in weight_map and EMBEDDING in weight_map):
            return None  # a head beside its copy is compared with it when both are here
        family, expected = FAMILIES[config.model_type], tensor_shapes(config)
        others = [name for name in weight_map if name not in expected and not is_ignored(name, config)]
        if plain_names(weight_map) or family.experts_apart or any(map(family.huggingface.ours, others)):
            return None  # names, and rows of several that are stored as one, are put right when all of them are known
        if others:
            raise UnsupportedError(f"{shown(others[0])}: not a tensor of a {config.model_type} model ({INDEX})")
        for name in expected:
            if name not in weight_map and not (tied and name == EMBEDDING and HEAD in weight_map):
                raise CheckpointError(f"{name}: missing, expected in {INDEX}")
        places = {name: weight_map.get(name) or weight_map[HEAD] for name in expected}
        files = fetcher.listing.files
        if missing := next((file for file in places.values() if file not in files), None):
            raise CheckpointError(f"{missing}: {INDEX} names it, and the hub has no such file")
        sizes = {file: files[file].nbytes for file in places.values()}
        kept = old["kept"] if old else [file for file in sizes if (folder / file).exists()]
        contents = dict(folder_files(folder))
        asked = old["name"] if old else str(fetcher.listing.model)
        work.write_journal({"work": "pull", "name": asked, "commit": fetcher.listing.commit, "kept": kept})
        for name, data in contents.items():
            work.write(name, data)
        carried = {name: describe(data) for name, data in contents.items()}
        return cls(fetcher, work, config, places, sizes, kept, carried)

    def run(self, progress: Progress) -> None:
        count, previous = len(self.sizes), 0
        self._check_space()
        progress.total = progress.done + PASSES * sum(self.sizes.values())
        done: dict[Path, Shard] = {}
        for number, (file, nbytes) in enumerate(self.sizes.items(), 1):
            path = self.work.folder / shard_name(number, count)
            here = self.fetcher.snapshot / file
            progress.label = f"checking {path.name}"
            shard = _sound(path, number, count, previous) if path.exists() else None
            if shard:
                progress.skip(PASSES * nbytes)
            else:
                goal = progress.done + PASSES * nbytes
                self.fetcher.fetch([file])
                progress.label = f"packing {file}"
                fields = shard_fields("huggingface", False, number, count, previous, self.carried)
                with SourceFiles({here: state_of(here)}) as source:
                    shard = write_checked(
                        self.work,
                        path,
                        self._tensors(here),
                        fields,
                        self.config.tie_word_embeddings,
                        source,
                        progress,
                        compare=True,
                    )
                progress.skip(goal - progress.done)
            if file not in self.kept and os.path.lexists(here):
                delete(here, state_of(here) if here.exists() else (0, 0))
            done[path] = shard
            previous = shard.crc32
        self.work.write(INDEX, index_bytes(done))
        open_checkpoint(self.work.folder).close()  # proves that all of it is there

    def _tensors(self, path: Path) -> list[Tensor]:
        """The tensors of one source file in the order of a pass, as the config wants them."""
        with InputFile(path) as file:
            found = read_safetensors(file)
        if HEAD in found and self.config.tie_word_embeddings:
            found.setdefault(EMBEDDING, found[HEAD]._replace(name=EMBEDDING))
        wanted = [name for name, file in self.places.items() if file == path.name]
        expected = tensor_shapes(self.config)
        for name in wanted:
            tensor = found.get(name)
            if tensor is None or tensor.shape != expected[name] or tensor.dtype not in PLAIN:
                what = f"{tensor.dtype} {tensor.shape}" if tensor else "missing"
                raise CheckpointError(f"{name}: {what}, expected {expected[name]} in {path.name}")
        return [found[name] for name in wanted]

    def _check_space(self) -> None:
        count = len(self.sizes)
        left = [
            nbytes
            for number, nbytes in enumerate(self.sizes.values(), 1)
            if not (self.work.folder / shard_name(number, count)).exists()
        ]
        need = int(SHARE * sum(left))
        cache = self.fetcher.repository.folder
        if left and os.stat(cache).st_dev == os.stat(self.work.folder).st_dev:
            need += max(left)
        free = shutil.disk_usage(self.work.folder).free
        if need > free:
            raise PackError(
                f"{self.work.destination}: {format_nbytes(need)} to write, but {format_nbytes(free)} free; free some"
            )


def _sound(path: Path, number: int, count: int, previous: int) -> Shard | None:
    """The shard an earlier run finished, after reading all of it; None, and gone, if it is damaged."""
    try:
        shard = header_of(path)
        if (shard.shard, shard.shards, shard.previous) == (number, count, previous) and not first_wrong(path, shard):
            return shard
    except CheckpointError:
        pass
    os.unlink(path)
    return None
