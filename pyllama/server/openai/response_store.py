"""Conversations by the ids of their last responses, for `previous_response_id`: in memory, and with a session directory
in files of it, so that they survive a restart.

    <directory>/responses/<id>.json        mode 600, whole or not there
"""

import json
import logging
import re
import secrets
from collections import OrderedDict
from contextlib import suppress

from pyllama.engine.private_folder import PrivateFolder
from pyllama.errors import RequestError, reason_of
from pyllama.server.json_object import JsonObject

#: What is kept in memory without a directory, and in its files with one; the least recently used go first.
MEMORY_NBYTES = 2 << 20
FILES_NBYTES = 64 << 20
_ID = re.compile("resp_[0-9a-f]{32}")
_SUFFIX = ".json"

_log = logging.getLogger("pyllama")


def new_id() -> str:
    """An id that nobody can guess: whoever knows it may read what was said."""
    return f"resp_{secrets.token_hex(16)}"


class ResponseStore:
    """directory: of the sessions, or None. Raises RequestError if it cannot be used."""

    def __init__(self, directory: str | None):
        self._folder: PrivateFolder | None = None
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        if directory is not None:
            try:
                self._folder = PrivateFolder.at(directory).folder("responses")
                for name in self._folder.names(".tmp"):  # by a process that was killed
                    self._folder.remove(name)
            except OSError as error:
                raise RequestError(f"session directory {directory}: {reason_of(error)}") from None
            self._nbytes = sum(size for _, size, _ in self._folder.files(_SUFFIX))

    def put(self, response_id: str, stored: JsonObject) -> None:
        """Keep what a conversation and its last response are, as JSON."""
        data = json.dumps(stored, ensure_ascii=False).encode()
        if self._folder is None:
            self._kept[response_id] = data
            while len(self._kept) > 1 and sum(map(len, self._kept.values())) > MEMORY_NBYTES:
                self._kept.popitem(last=False)
            return
        temporary = f".{secrets.token_hex(16)}.tmp"
        try:
            self._nbytes += len(data)
            if self._nbytes > FILES_NBYTES:
                for _, _, name in sorted(self._folder.files(_SUFFIX)):  # down to less, or each to come would look again
                    self._nbytes -= self._folder.remove(name)
                    if self._nbytes < FILES_NBYTES * 3 // 4:
                        break
            with self._folder.create(temporary) as handle:
                handle.write(data)
            self._folder.rename(temporary, response_id + _SUFFIX)
        except OSError as error:
            _log.warning("session directory: a response is not kept: %s", reason_of(error))
            self._folder.remove(temporary)

    def get(self, response_id: str) -> JsonObject | None:
        """What put() kept, if it still is."""
        if not _ID.fullmatch(response_id):
            return None
        if self._folder is None:
            data = self._kept.get(response_id)
            if data is not None:
                self._kept.move_to_end(response_id)
                return json.loads(data)
            return None
        with suppress(OSError, ValueError):
            with self._folder.read(response_id + _SUFFIX) as handle:
                stored = json.load(handle)
            self._folder.touch(response_id + _SUFFIX)
            if isinstance(stored, dict) and {"messages", "response"} <= stored.keys():
                return stored
        return None

    def delete(self, response_id: str) -> bool:
        """Forget it; whether it was there."""
        if not _ID.fullmatch(response_id):
            return False
        if self._folder is None:
            return self._kept.pop(response_id, None) is not None
        freed = self._folder.remove(response_id + _SUFFIX)
        self._nbytes -= freed
        return freed > 0
