"""A client of SMB that keeps files open, as an image viewer on Windows does; smbclient cannot."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from smbprotocol.connection import Connection
from smbprotocol.open import (
    CreateDisposition,
    CreateOptions,
    FileAttributes,
    FilePipePrinterAccessMask,
    ImpersonationLevel,
    Open,
    ShareAccess,
)
from smbprotocol.session import Session
from smbprotocol.tree import TreeConnect

from tests.support import LOCALHOST

_TOGETHER = ShareAccess.FILE_SHARE_READ | ShareAccess.FILE_SHARE_WRITE | ShareAccess.FILE_SHARE_DELETE


@dataclass
class OpenFile:
    """A file that is open on the server."""

    handle: Open

    @property
    def size(self) -> int:
        """What the server said at the opening."""
        return int(self.handle.end_of_file)

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.handle.read(offset, size))


@dataclass
class Client:
    """A session of a guest on one share."""

    tree: TreeConnect

    @contextmanager
    def open(self, path: str) -> Iterator[OpenFile]:
        """`path` with slashes."""
        handle = Open(self.tree, path.replace("/", "\\"))
        handle.create(
            ImpersonationLevel.Impersonation,
            FilePipePrinterAccessMask.GENERIC_READ,
            FileAttributes.FILE_ATTRIBUTE_NORMAL,
            _TOGETHER,
            CreateDisposition.FILE_OPEN,
            CreateOptions.FILE_NON_DIRECTORY_FILE,
        )
        try:
            yield OpenFile(handle)
        finally:
            handle.close()

    def whole(self, path: str) -> bytes:
        with self.open(path) as file:
            return file.read(0, file.size)


@contextmanager
def client(port: int, share: str) -> Iterator[Client]:
    """A connection to an smbd on this machine."""
    connection = Connection(uuid.uuid4(), LOCALHOST, port, require_signing=False)
    connection.connect()
    try:
        session = Session(connection, "guest", "guest", require_encryption=False, auth_protocol="ntlm")
        session.connect()
        tree = TreeConnect(session, rf"\\{LOCALHOST}\{share}")
        tree.connect(require_secure_negotiate=False)
        yield Client(tree)
    finally:
        connection.disconnect()
