"""What the operating system says and promises of files: durable names, and its errors as ours.

Knows nothing of what is stored. Used by whoever writes into a store.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dicomfs.errors import StoreError, StoreFull, StoreUnavailable


def sync_directory(folder: Path) -> None:
    """Make the entries of a folder durable. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn the operating system's errors into StoreFull or StoreUnavailable. Every other error passes."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreFull(f"no space left on the device of {what}") from error
        remedy = _REMEDIES.get(error.errno or 0, "")
        raise StoreUnavailable(f"{what} cannot be used now: {error.strerror}{remedy}") from error
    except MemoryError as error:
        raise StoreUnavailable(f"{what} cannot be used now: out of memory") from error


_REMEDIES: Final = {
    errno.EROFS: "; its file system is read-only: look for errors in the kernel's log, then mount it anew",
    errno.ENOENT: "; a folder of it is missing: is its file system mounted?",
    errno.ENOTDIR: "; a folder of it is missing: is its file system mounted?",
    errno.EACCES: "; make its folders writable for this user",
    errno.EPERM: "; make its folders writable for this user",
    errno.EIO: "; look for errors of the disk in the kernel's log",
    errno.EMFILE: "; raise LimitNOFILE (ulimit -n), or lower max_associations",
    errno.ENFILE: "; raise fs.file-max",
}
