"""Grammars as processes: compiled within limits of time and memory that the kernel keeps, and asked for each token.

A grammar is a stranger's program. Measured: a schema of 1 KB took 2.4 s and 250 MB to be refused, another 5.9 s for
one mask, in calls that let other threads run but cannot be stopped. So each has a process (grammar_worker.py): a fork
of one that holds the vocabulary. Its masks are computed while the model computes the logits they are for.
"""

import asyncio
import json
import marshal
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyllama.errors import RequestError
from pyllama.server import grammar_worker as worker
from pyllama.server.grammar_reason import reason_for_client

if TYPE_CHECKING:
    from pyllama.model import Model

#: Memory of one grammar beside the vocabulary, in address space.
NBYTES = 96 << 20
#: Processor time for one token. The engine waits for it, and everybody with it.
STEP_S = 0.5
# For a machine that gives the process none: so long at once, and all waits of one grammar beyond what is usual.
_WAIT_S = 4.0
_USUAL_S = 0.25
_WAITS_S = 4.0
_MESSAGE_NBYTES = 1 << 20  # an error, or a mask of eight million tokens


class TooSlow(Exception):
    """Compiling took longer than it was given."""


class Refused(Exception):
    """The grammar is none, or takes too much; the message says why."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must be.

    text   the grammar, in llguidance's dialect of Lark
    param  the field of the request it came from, for errors
    """

    text: str
    param: str


class GrammarProcess:
    """One compiled grammar, for some answers. The process ends when nobody holds this any more."""

    def __init__(self, connection: socket.socket, param: str, encode: Callable[[bytes], bytes]):
        self._connection = connection
        self._encode = encode
        self.param = param
        self._masks: dict[int, bytes] = {}
        self._coming: int | None = None  # the answer whose mask is on its way, or an error in its place
        self._waited_s = 0.0
        self._close = weakref.finalize(self, connection.close)

    def begin(self, mask: bytes, answers: int) -> None:
        """After compiling: the first mask, the same for so many answers."""
        self._connection.settimeout(_WAIT_S)
        self._masks = dict.fromkeys(range(answers), mask)
        if answers > 1:
            self._send(b"c", worker.LENGTH.pack(answers))

    def mask(self, answer: int) -> bytes:
        """A bit for each token: whether it may come next. Raises RequestError for a grammar that takes too long."""
        if answer == self._coming:
            self._take_mask()
        return self._masks[answer]

    def accept(self, answer: int, token_id: int) -> bool:
        """The token was taken; whether nothing may follow. Raises RequestError."""
        if self._coming is not None:  # what it sends comes in order
            self._take_mask()
        self._send(b"t", worker.TOKEN.pack(answer, token_id))
        self._masks.pop(answer, None)
        kind, rest = self._receive()
        if kind == worker.REFUSED:
            raise self._failed(rest)
        if kind == worker.DONE:
            return True
        self._coming = answer
        return False

    def fitting(self, answer: int, token_ids: Sequence[int]) -> int:
        """How many of these tokens the grammar would take next, one after the other. Raises RequestError."""
        if self._coming is not None:
            self._take_mask()
        self._send(b"f", worker.LENGTH.pack(answer), struct.pack(f"<{len(token_ids)}I", *token_ids))
        _, rest = self._receive()
        (count,) = worker.LENGTH.unpack(rest)
        return int(count)

    def _take_mask(self) -> None:
        kind, rest = self._receive()
        answer, self._coming = self._coming, None
        if kind == worker.REFUSED:
            raise self._failed(rest)
        assert answer is not None
        self._masks[answer] = rest

    def _failed(self, reason: bytes) -> RequestError:
        return RequestError.about(self.param, reason_for_client(reason.decode("utf-8", "replace")))

    def _send(self, *parts: bytes) -> None:
        try:
            worker.send(self._connection, *parts)
        except OSError:
            raise self._gone() from None

    def _receive(self) -> tuple[bytes, bytes]:
        started = time.monotonic()
        try:
            while (message := worker.receive(self._connection))[:1] == worker.TOKENS:
                worker.send(self._connection, self._encode(message[1:]))
        except (EOFError, OSError):
            raise self._gone() from None
        self._waited_s += max(0.0, time.monotonic() - started - _USUAL_S)
        if self._waited_s > _WAITS_S:
            raise self._gone()
        return message[:1], message[1:]

    def _gone(self) -> RequestError:
        self._close()
        too_much = f"it takes more than {STEP_S:g} s or {NBYTES >> 20} MB to find the next token; make it smaller"
        return RequestError.about(self.param, too_much)


class GrammarProcesses:
    """Makes them, for one model. The vocabulary is prepared when the first is asked for."""

    def __init__(self, model: "Model"):
        self._model = model
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._end = lambda: None

    async def make(self, grammar: Grammar, limits: dict, seconds: float, answers: int) -> GrammarProcess:
        """Compile a grammar in so many seconds of processor time. Raises Refused and TooSlow.

        Cancelled, it ends the process at once.
        """
        connection, child = await asyncio.to_thread(self._fork)
        process = GrammarProcess(connection, grammar.param, self._tokens)
        try:
            order = {
                "text": grammar.text, "limits": limits, "seconds": seconds, "step_seconds": STEP_S, "nbytes": NBYTES,
            }  # fmt: skip
            data = json.dumps(order).encode()
            loop = asyncio.get_running_loop()
            connection.setblocking(False)
            # Processor time is what counts; this is for a machine that gives it none.
            async with asyncio.timeout(10 * seconds + 10):
                await loop.sock_sendall(connection, worker.LENGTH.pack(len(data)) + data)
                answer = await self._answer(connection)
                if answer[:1] == worker.REFUSED:
                    raise Refused(reason_for_client(answer[1:].decode("utf-8", "replace")))
                mask = await self._answer(connection)
                if not any(mask[1:]):  # told now, not as the first token is drawn
                    raise Refused("nothing fits the schema")
        except (EOFError, OSError, TimeoutError):
            status = await asyncio.to_thread(self._kill, child)
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGABRT:
                raise Refused(f"it takes more than {NBYTES >> 20} MB to compile; make it smaller") from None
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGKILL):
                raise TooSlow from None
            raise Refused("it could not be compiled") from None
        except BaseException:
            asyncio.get_running_loop().run_in_executor(None, self._kill, child)
            raise
        process.begin(mask[1:], answers)
        return process

    async def _answer(self, connection: socket.socket) -> bytes:
        """The next message that is no question for tokens."""
        while (message := await _message(connection))[:1] == worker.TOKENS:
            ids = await asyncio.to_thread(self._tokens, message[1:])
            await asyncio.get_running_loop().sock_sendall(connection, worker.LENGTH.pack(len(ids)) + ids)
        return message

    def _tokens(self, text: bytes) -> bytes:
        ids = self._model.tokenizer.encode(text.decode("utf-8", "replace"), add_special_tokens=False)
        return struct.pack(f"<{len(ids)}I", *ids)

    def _fork(self) -> tuple[socket.socket, int]:
        with self._lock:
            for attempt in (0, 1):
                control = self._control or self._start()
                ours, theirs = socket.socketpair()
                try:
                    with theirs:
                        socket.send_fds(control, [b"n"], [theirs.fileno()])
                        return ours, worker.LENGTH.unpack(worker.receive(control))[0]
                except (EOFError, OSError):  # it was ended, by the kernel or by somebody: once more
                    ours.close()
                    self._stop()
                    if attempt:
                        raise Refused("the process that compiles grammars does not run") from None
        raise AssertionError

    def _kill(self, child: int) -> int:
        """How the process ended that was made last or before; it is ended if it runs."""
        with self._lock:
            if self._control is None:
                return -1
            try:
                self._control.sendall(b"e" + worker.LENGTH.pack(child))
                return struct.unpack("<i", worker.receive(self._control))[0]
            except (EOFError, OSError):
                self._stop()
                return -1

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            # -P: or this folder's `text`, `tools` and so on would be modules for everybody.
            command = [sys.executable, "-P", worker.__file__, str(theirs.fileno())]
            process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )  # Rust tells of each allocation that failed
        self._control = ours
        self._end = weakref.finalize(self, _end, ours, process)
        try:
            worker.send(ours, _vocabulary(self._model))
            if worker.receive(ours) != b"ready":
                raise EOFError
        except (EOFError, OSError):
            self._stop()
            raise Refused("the process that compiles grammars does not start") from None
        return ours

    def _stop(self) -> None:
        self._control = None
        self._end()


def _end(control: socket.socket, process: subprocess.Popen) -> None:
    control.close()
    try:
        process.wait(2)  # it goes by itself when the socket is closed
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def _message(connection: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()

    async def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = await loop.sock_recv(connection, size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    (size,) = worker.LENGTH.unpack(await exactly(worker.LENGTH.size))
    if size > _MESSAGE_NBYTES:
        raise EOFError
    return await exactly(size)


def _vocabulary(model: "Model") -> bytes:
    """The message that grammar_worker.vocabulary reads."""
    tokenizer, size = model.tokenizer, model.config.vocab_size
    ends = list(tokenizer.eos_token_ids) or [size - 1]
    specials = sorted(tokenizer.special_ids)
    tokens = [tokenizer.token_bytes(i) if i < tokenizer.vocab_size else b"" for i in range(size)]
    return marshal.dumps((ends, tokenizer.bos_token_id, specials, tokens))  # the same interpreter reads it
