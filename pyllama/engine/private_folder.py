"""A folder that is the user's alone, and its plain files.

Everything is reached through the folder's open descriptor and by one name in it, never through a link: whoever can
write to a folder above may move things about, and will not make this process read, write or wait elsewhere. Knows
nothing of what the files hold.
"""

import contextlib
import errno
import logging
import os
import stat
import weakref
from collections.abc import Iterator
from io import BufferedReader, BufferedWriter

_log = logging.getLogger("pyllama")

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Without O_NONBLOCK, opening a pipe waits for whoever writes to it.
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class PrivateFolder:
    """An open folder of the user's own that nobody else may write to; mode 700 where the file system has modes."""

    def __init__(self, descriptor: int, what: str):
        """Takes the descriptor over. Raises PermissionError if the folder is another user's, or stays open to them."""
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():
            raise _refused(f"{what} belongs to user {status.st_uid}, expected one of your own")
        if status.st_mode & 0o077:
            with contextlib.suppress(OSError):  # a file system without modes: what counts is what it says then
                os.fchmod(descriptor, 0o700)
            mode = os.fstat(descriptor).st_mode & 0o777
            if mode & 0o022:
                raise _refused(f"{what} has mode {mode:o}, which others may write to; expected 700")
            _log.warning("session directory: %s had mode %o, now %o", what, status.st_mode & 0o777, mode)

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> "PrivateFolder":
        """The folder at a path, made if need be (not its parents). Raises OSError.

        The path may be a link, as systemd makes them for state directories, if it is the user's own or root's.
        """
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode) and status.st_uid not in (0, os.geteuid()):
            raise _refused(f"it is a link of user {status.st_uid}'s, expected a folder of your own")
        return cls(os.open(path, _OPEN_FOLDER), "it")

    def folder(self, name: str) -> "PrivateFolder":
        """A folder in this one, made if need be. Raises OSError, also for a link."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self._descriptor)
        return PrivateFolder(os.open(name, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=self._descriptor), f"{name!r} in it")

    def folders(self) -> list[str]:
        """Names of the folders of the user's own in this one."""
        own = os.geteuid()
        statuses = ((name, self._status(name)) for name in sorted(os.listdir(self._descriptor)))
        return [name for name, status in statuses if status and stat.S_ISDIR(status.st_mode) and status.st_uid == own]

    def names(self, suffix: str | tuple[str, ...]) -> list[str]:
        """Names that end in suffix, or in one of several, whatever they are the names of."""
        return sorted(name for name in os.listdir(self._descriptor) if name.endswith(suffix))

    def files(self, suffix: str | tuple[str, ...]) -> Iterator[tuple[float, int, str]]:
        """(time of the last change, size in bytes, name) of the files whose names end in suffix."""
        for name in self.names(suffix):
            status = self._status(name)
            if status and _is_own_file(status):
                yield status.st_mtime_ns, status.st_size, name

    def is_file(self, name: str) -> bool:
        """Whether it is a plain file of the user's own, under this name alone: no link, pipe, device or folder."""
        status = self._status(name)
        return status is not None and _is_own_file(status)

    def read(self, name: str) -> BufferedReader:
        """The file, open for reading. Raises OSError, also for what is_file() does not call one."""
        status = self._status(name)
        if status and not _is_own_file(status):  # before it is opened: that alone may do something to a device
            raise _refused("not a plain file")
        descriptor = os.open(name, _OPEN_FILE, dir_fd=self._descriptor)
        if not _is_own_file(os.fstat(descriptor)):
            os.close(descriptor)
            raise _refused("not a plain file")
        return open(descriptor, "rb")

    def create(self, name: str) -> BufferedWriter:
        """A new file of mode 600, open for writing. Raises FileExistsError if the name is taken, even by a link."""
        return open(os.open(name, _CREATE_FILE, 0o600, dir_fd=self._descriptor), "wb")

    def rename(self, old: str, new: str) -> None:
        """Takes the place of what has the new name; of a link itself, not of what it leads to."""
        os.rename(old, new, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def remove(self, name: str) -> int:
        """Delete a file, or a link itself; the bytes that this frees, 0 if it cannot be."""
        status = self._status(name)
        try:
            os.unlink(name, dir_fd=self._descriptor)
        except OSError:
            return 0
        return status.st_size if status and _is_own_file(status) else 0

    def touch(self, name: str) -> None:
        """Changed just now; nothing if it cannot be."""
        with contextlib.suppress(OSError):
            os.utime(name, dir_fd=self._descriptor, follow_symlinks=False)

    def _status(self, name: str) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except OSError:
            return None


def _is_own_file(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid == os.geteuid()


def _refused(reason: str) -> PermissionError:
    return PermissionError(errno.EPERM, reason)
