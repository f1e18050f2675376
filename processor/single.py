"""One daemon of a name on a machine: a second one is refused, however both were started.

A name that somebody gave stands for one daemon, in a unit, a dashboard, a log. The default, the host's name,
stands for the machine, on which any number of daemons may run. What machines have names in common is not
looked at: a crashed daemon must be able to come back before its lease is over, and no harm is done, since
workers are told apart by their ids.
"""

import hashlib
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from processor.config import Settings
from processor.errors import ConfigError


@contextmanager
def named(settings: Settings) -> Iterator[None]:
    """Keep the name that the settings give this daemon, if they give one, for the block.

    It is one of Linux' abstract sockets: it goes with the process, whatever ends it, and is seen across users
    and private directories, but not out of a container's network. Elsewhere than on Linux nothing is kept.

    Raises:
        ConfigError: another daemon of this machine has the name, in the same project.

    """
    if settings.origin("name").kind == "default" or sys.platform != "linux":
        yield
        return
    key = hashlib.sha256(f"{settings.url}\n{settings.name}".encode()).hexdigest()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as mark:
        try:
            mark.bind(f"\0supabase-job-processor/{key}")
        except OSError as error:
            raise ConfigError(
                f"PROCESSOR_NAME: a daemon called {settings.name!r} already works for {settings.url} on this "
                "machine. Stop that one, or give this one another name; without any, as many as you like run."
            ) from error
        yield
