"""What the operating system allows a node."""

import contextlib
import resource


def allow_open_files() -> None:
    """Use all file descriptors that this process may have.

    Many systems begin with 1,024 and allow far more: each connection takes one, and whoever opens
    a thousand would keep everybody else out.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
