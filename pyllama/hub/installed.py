"""The Hub's cache, and the demo's, model by model: what is there, what it takes, and how one of them is removed.

Knows names, sizes and links; has no idea what the files hold. Does not use the network.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from pyllama.errors import HubError
from pyllama.hub.cache import Repository
from pyllama.hub.choose import QUANTIZATION, has_quantization, split_groups
from pyllama.hub.disk import disk_errors
from pyllama.hub.find import NotInCacheError, demo_path, find, named
from pyllama.hub.meant import cached_names
from pyllama.hub.names import DEMO, ModelName


@dataclass(frozen=True, slots=True)
class Installed:
    """One model that can be named on the command line.

    nbytes  of its weights
    path    as resolve() gives it; of one that is not all there its repository's folder
    whole   False where a pull would be needed first
    """

    name: str
    nbytes: int
    path: Path
    whole: bool = True


def installed() -> list[Installed]:
    """All models in the caches, by name."""
    found = [model for name in cached_names() for model in _of_repository(name)]
    demo = demo_path()
    if demo.is_file():
        found.append(Installed(DEMO, demo.stat().st_size, demo))
    return sorted(found, key=lambda model: model.name.lower())


def remove(name: str) -> int:
    """Delete a model's files from the cache; the bytes that came free.

    name  as for pull: org/name removes all of a repository, with @revision or :quantization only that

    Raises HubError.
    """
    if name == DEMO:
        return _remove_demo()
    model = named(name)
    repository = Repository(model.repository)
    with disk_errors(name):
        if not repository.folder.is_dir():
            raise NotInCacheError(f"{model}: not in the cache ({repository.cache}), so there is nothing to remove")
        before = _stored_nbytes(repository.folder)
        if str(model) == model.repository:
            # Under another name first: a model is there or not, and never half of it.
            doomed = repository.folder.with_name(f".{repository.folder_name}.removed")
            os.rename(repository.folder, doomed)
            shutil.rmtree(doomed)
            shutil.rmtree(repository.cache / ".locks" / repository.folder_name, ignore_errors=True)
            return before
        _remove_part(repository, model)
        return before - _stored_nbytes(repository.folder)


def _of_repository(name: str) -> list[Installed]:
    repository = Repository(name)
    refs = repository.folder / "refs"
    revisions = [path.relative_to(refs).as_posix() for path in sorted(refs.rglob("*")) if path.is_file()]
    named_by = {repository.commit(revision): revision for revision in reversed(revisions)}
    models = []
    for snapshot in sorted((repository.folder / "snapshots").glob("*")):
        models += _of_snapshot(ModelName(name, named_by.get(snapshot.name, snapshot.name)), snapshot)
    if not models and (nbytes := _stored_nbytes(repository.folder)):
        models.append(Installed(name, nbytes, repository.folder, whole=False))
    return models


def _of_snapshot(model: ModelName, snapshot: Path) -> list[Installed]:
    files = [path for path in snapshot.rglob("*") if path.is_file()]
    gguf = split_groups(path.relative_to(snapshot).as_posix() for path in files if path.suffix == ".gguf")
    names = [model]
    if gguf:
        kinds = {file: QUANTIZATION.search(file) for file in gguf if "mmproj" not in file}
        names += [ModelName(model.repository, model.revision, kind[0]) for kind in kinds.values() if kind]
    models: dict[Path, Installed] = {}
    for name in reversed(names):  # the shortest name last, which is what a path with several keeps
        try:
            path = find(name)
        except HubError:
            continue
        if path.is_dir():
            parts = [one for one in files if one.suffix in (".safetensors", ".pth")]
        else:
            file = path.relative_to(snapshot).as_posix()
            parts = [snapshot / part for group in gguf.values() if file in group for part in group]
        models[path] = Installed(str(name), sum(part.stat().st_size for part in parts), path)
    return list(models.values())


def _remove_demo() -> int:
    path = demo_path()
    if not path.is_file():
        raise NotInCacheError(f"{DEMO}: not in the cache ({path.parent}), so there is nothing to remove")
    with disk_errors(DEMO):
        nbytes = path.stat().st_size
        path.unlink()
    return nbytes


def _remove_part(repository: Repository, model: ModelName) -> None:
    commit = repository.commit(model.revision)
    snapshot = repository.snapshot(commit) if commit else None
    if snapshot is None or not snapshot.is_dir():
        raise NotInCacheError(f"{model}: not in the cache ({repository.folder}), so there is nothing to remove")
    links = [path for path in snapshot.rglob("*") if not path.is_dir()]
    if model.quantization:
        links = [
            path
            for path in links
            if path.suffix == ".gguf" and has_quantization(path.relative_to(snapshot).as_posix(), model.quantization)
        ]
        if not links:
            raise NotInCacheError(f"{model}: no such file in the cache ({snapshot}), so there is nothing to remove")
    else:
        (repository.folder / "refs" / model.revision).unlink(missing_ok=True)
    for link in links:
        link.unlink()
    used = {os.path.realpath(path) for path in (repository.folder / "snapshots").rglob("*") if path.is_symlink()}
    for blob in (repository.folder / "blobs").glob("*"):
        if str(blob.resolve()) not in used and blob.suffix != ".incomplete":
            blob.unlink()
    if not model.quantization:
        shutil.rmtree(snapshot)


def _stored_nbytes(folder: Path) -> int:
    """Of the files themselves: links cost nothing."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
