"""Messages between the daemon and its processes: frames of a length and a pickle.

Both ends are this package, of the same version, so a pickle is safe here. What handlers raise is not made
for it: an exception whose constructor takes other arguments than it keeps cannot be read back. So errors
travel as type, arguments and attributes, each with what it was raised from, and with its traceback as a note.
"""

import itertools
import pickle
import struct
import traceback
from typing import Any

from processor.calls.line import Answer, Message

HEADER = struct.Struct("!Q")


def pack(message: Message) -> bytes:
    """Return the frame of a message; what cannot be pickled in an answer becomes an error in it."""
    try:
        body = pickle.dumps(tuple(_out(part) for part in message))
    except Exception as error:  # any class may refuse to be pickled, in any way
        if not message or not isinstance(message[-1], Answer):
            raise
        refused = TypeError(f"a {type(message[-1].value).__name__} cannot leave the process: {error}")
        body = pickle.dumps((*message[:-1], _out(Answer(error=refused))))
    return HEADER.pack(len(body)) + body


def unpack(body: bytes) -> Message:
    """Return the message of a frame's body."""
    return tuple(_in(part) for part in pickle.loads(body))  # noqa: S301 - it is our own process's


class _Raised:
    """An answer that is an error, on its way."""

    def __init__(self, chain: list[bytes]) -> None:
        self.chain = chain


def _out(part: Any) -> Any:
    if not isinstance(part, Answer) or part.error is None:
        return part
    chain: list[bytes] = []
    error: BaseException | None = part.error
    lines = traceback.format_exception(part.error)
    while error is not None and len(chain) < 10:
        chain.append(_error_out(error))
        error = error.__cause__
    return _Raised([*chain, pickle.dumps("".join(lines))])


def _in(part: Any) -> Any:
    if not isinstance(part, _Raised):
        return part
    errors = [_error_in(packed) for packed in part.chain[:-1]]
    for error, cause in itertools.pairwise(errors):
        error.__cause__ = cause
    errors[0].add_note(f"In the handler's process:\n{pickle.loads(part.chain[-1])}")  # noqa: S301 - as above
    return Answer(error=errors[0])


def _error_out(error: BaseException) -> bytes:
    attributes = {name: value for name, value in vars(error).items() if _travels(value)}
    if _travels(error) and type(pickle.loads(pickle.dumps(error))) is type(error):  # noqa: S301 - as above
        return pickle.dumps(error)
    arguments = tuple(value if _travels(value) else str(value) for value in error.args)
    parts = (type(error), arguments, attributes)
    if _travels(parts):
        return pickle.dumps(parts)
    return pickle.dumps(RuntimeError(f"{type(error).__qualname__}: {error}"))


def _error_in(packed: bytes) -> BaseException:
    try:
        found = pickle.loads(packed)  # noqa: S301 - as above
        if isinstance(found, BaseException):
            return found
        kind, arguments, attributes = found
        error: BaseException = kind.__new__(kind, *arguments)
        error.args = arguments
        vars(error).update(attributes)
    except Exception as reason:  # noqa: BLE001 - a class may refuse to be rebuilt, in any way
        return RuntimeError(f"the handler's process raised what cannot be rebuilt here: {reason}")
    return error


def _travels(value: Any) -> bool:
    try:
        pickle.loads(pickle.dumps(value))  # noqa: S301 - it was pickled here
    except Exception:  # noqa: BLE001 - as above
        return False
    return True
