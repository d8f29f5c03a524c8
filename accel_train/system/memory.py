"""How the C library keeps memory that was freed: by default so little that every batch is touched anew."""

from __future__ import annotations

import ctypes
import functools
import os

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of mallopt, glibc's numbers
LARGE = 32 << 20  # bytes; larger blocks go back to the system at once, as ever
KEPT = 1 << 30


@functools.cache
def keep_freed() -> None:
    """Let glibc reuse blocks of up to 32 MB, and keep up to 1 GiB that is free at the end of its heap, instead of
    giving pages back with every batch and activation and having them zeroed again. Where the C library is another one,
    or ``MALLOC_...`` or ``GLIBC_TUNABLES`` in the environment says what is wanted, nothing happens."""
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018
    except (OSError, TypeError, AttributeError):
        return
    library.mallopt(MMAP_THRESHOLD, LARGE)
    library.mallopt(TRIM_THRESHOLD, KEPT)
