"""Every exit code. Scripts and units rely on them."""

from typing import Final

from dicomfs.errors import DicomfsError, MountRefused, StoreError, StoreFull, UsageError

OK: Final = 0
FAILED: Final = 1
"""It could not be done, or a bug."""
USAGE: Final = 2
"""The command, an option or the configuration is wrong."""
SOME_REFUSED: Final = 3
"""`import`, `render`: a DICOM object was refused or cannot be shown, or there was none."""
STORE_FULL: Final = 4
STORE_TROUBLE: Final = 5
"""The store is of another version, is none, or cannot be used now."""
MOUNT_REFUSED: Final = 6
ALARM: Final = 7
"""`status --check`, `scrub`, `reindex`: somebody has to see to something."""
EXIT_CODES: Final[dict[type[DicomfsError], int]] = {
    MountRefused: MOUNT_REFUSED,
    UsageError: USAGE,
    StoreFull: STORE_FULL,
    StoreError: STORE_TROUBLE,
    DicomfsError: FAILED,
}


def exit_code(error: DicomfsError) -> int:
    """What a command that ends with this error returns."""
    return next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
