"""The program in which strangers' grammars are compiled and followed (grammar_process.py starts it).

It prepares a vocabulary once and then forks a process for each grammar: what the vocabulary takes is shared, and each
has limits of its own that the kernel keeps. llguidance has limits for what it builds, but none for the time of its
emptiness tests, none for all of its memory, and no way to be stopped. Needs nothing of pyllama, so that it is small.

Messages are a length (uint32, little-endian) and that many bytes. To the program: the vocabulary, answered by b"ready";
then b"n" with a socket, answered by the process it made, or b"e" and a process to end, answered by how it ended. To
such a process: JSON {"text", "limits", "seconds", "step_seconds", "nbytes"}, then b"c" and a number of
answers to write, then b"t", answer (uint32) and token (uint32) for each token taken, and b"f", answer and tokens to ask
how many of them could be taken. Where a grammar leaves only one text to go on with, it is to be written in the model's
own tokens: then the process asks with TOKENS and the text, and is sent uint32 ids.
"""

import json
import marshal
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any

LENGTH = struct.Struct("<I")
TOKEN = struct.Struct("<II")
# Every answer of a grammar's process begins with one of these.
OK, DONE, REFUSED, MASK, TOKENS, FITS = b"o", b"d", b"r", b"m", b"k", b"f"
_asked: list[socket.socket] = []  # whom to ask for tokens, in a grammar's process


def send(connection: socket.socket, *parts: bytes) -> None:
    data = b"".join(parts)
    connection.sendall(LENGTH.pack(len(data)) + data)


def receive(connection: socket.socket) -> bytes:
    """The next message. Raises EOFError when there is none any more."""
    (size,) = LENGTH.unpack(_exactly(connection, LENGTH.size))
    return _exactly(connection, size)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(min(size - len(data), 1 << 20))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def vocabulary(message: bytes) -> Any:
    """llguidance's tokenizer from ends, bos or None, special ids, and each token's bytes."""
    import llguidance

    ends, bos, specials, found = marshal.loads(message)

    class Wrapped:
        eos_token_id = ends[0]
        bos_token_id = bos
        tokens = found
        special_token_ids = specials

        def __call__(self, text: bytes | str) -> list[int]:
            data = text.encode() if isinstance(text, str) else text
            if not _asked or not data:
                return []
            send(_asked[0], TOKENS, data)
            ids = receive(_asked[0])
            return list(struct.unpack(f"<{len(ids) // 4}I", ids))

    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(Wrapped()), n_vocab=len(found), eos_token=ends)


def run(control: socket.socket) -> None:
    """Make processes until nobody asks for any more."""
    tokenizer = vocabulary(receive(control))
    send(control, b"ready")
    children: set[int] = set()
    try:
        while True:
            order, descriptors, _, _ = socket.recv_fds(control, 5, 1)
            if not order:
                return
            if order[:1] == b"n":
                child = os.fork()
                if not child:
                    control.close()
                    _follow(socket.socket(fileno=descriptors[0]), tokenizer)
                os.close(descriptors[0])
                children.add(child)
                send(control, LENGTH.pack(child))
            else:
                (child,) = LENGTH.unpack(order[1:])
                status = -1
                if child in children:  # else it was waited for, and the number may be another's
                    os.kill(child, signal.SIGKILL)
                    _, status = os.waitpid(child, 0)
                    children.discard(child)
                send(control, struct.pack("<i", status))
            for child in list(children):
                if os.waitpid(child, os.WNOHANG)[0]:
                    children.discard(child)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)


def _follow(connection: socket.socket, tokenizer: Any) -> None:
    """In a process of its own: compile one grammar and answer for it until nobody holds the other end."""
    code = 1
    try:
        _serve(connection, tokenizer)
        code = 0
    except (EOFError, OSError):
        code = 0
    finally:
        os._exit(code)


def _serve(connection: socket.socket, tokenizer: Any) -> None:
    import llguidance

    _asked.append(connection)
    order = json.loads(receive(connection))
    _limit_memory(order["nbytes"])
    signal.setitimer(signal.ITIMER_PROF, order["seconds"])  # its signal ends the process, whatever it does
    grammar = llguidance.LLMatcher.grammar_from_lark(order["text"])
    limits = llguidance.LLParserLimits(**order["limits"])
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    mask = b"" if matcher.is_error() else matcher.compute_bitmask()
    if matcher.is_error():
        send(connection, REFUSED, matcher.get_error().encode("utf-8", "replace"))
        return
    signal.setitimer(signal.ITIMER_PROF, order["step_seconds"])
    send(connection, OK)
    send(connection, MASK, mask)
    matchers = [matcher]
    while True:
        message = receive(connection)
        signal.setitimer(signal.ITIMER_PROF, order["step_seconds"])
        if message[:1] == b"c":
            (count,) = LENGTH.unpack(message[1:])
            matchers = [matcher, *(matcher.deep_copy() for _ in range(count - 1))]
            continue
        if message[:1] == b"f":
            (index,) = LENGTH.unpack_from(message, 1)
            tokens = struct.unpack(f"<{len(message) // 4 - 1}I", message[5:])
            send(connection, FITS, LENGTH.pack(_fitting(matchers[index], tokens, order["step_seconds"])))
            continue
        index, token = TOKEN.unpack(message[1:])
        follower = matchers[index]
        if not follower.consume_token(token):
            send(connection, REFUSED, follower.get_error().encode("utf-8", "replace"))
            continue
        if follower.is_stopped():
            send(connection, DONE)
            continue
        send(connection, OK)
        # At once, while the model computes the logits that it is for.
        mask = follower.compute_bitmask()
        if follower.is_error():
            send(connection, REFUSED, follower.get_error().encode("utf-8", "replace"))
        else:
            send(connection, MASK, mask)


def _fitting(matcher: Any, tokens: Sequence[int], step_seconds: float) -> int:
    """How many of these tokens the grammar would take, one after the other.

    Asked of a copy: one that fails, or has reached a limit on a way that is never gone, would fail for good. Near half
    of the time for a step it says what it knows, since asking must not end what would be answered unasked.
    """
    ahead, started = matcher.deep_copy(), time.process_time()
    for count, token in enumerate(tokens):
        late = time.process_time() - started > step_seconds / 2
        if late or ahead.is_stopped() or not ahead.consume_token(token):
            return count
    return len(tokens)


def _limit_memory(nbytes: int) -> None:
    """So many bytes beside what is shared; and if the machine's run out, this process is the one to go."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
        with open("/proc/self/statm") as file:
            nbytes += int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (nbytes if hard < 0 else min(nbytes, hard), hard))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server
    with socket.socket(fileno=int(sys.argv[1])) as control:
        try:
            run(control)
        except (EOFError, OSError):
            pass
