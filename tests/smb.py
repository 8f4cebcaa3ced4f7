"""A client of SMB that keeps files open, as an image viewer on Windows does; smbclient cannot."""

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from smbprotocol.change_notify import CompletionFilter, FileAction, FileSystemWatcher
from smbprotocol.connection import Connection
from smbprotocol.exceptions import NoMoreFiles, SMBException
from smbprotocol.file_info import FileInformationClass
from smbprotocol.open import (
    CreateDisposition,
    CreateOptions,
    DirectoryAccessMask,
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


Event = tuple[str, str]
"""What happened to a name, and the name; ("everything", "") when the server has lost count."""

_ACTIONS = {
    FileAction.FILE_ACTION_ADDED: "added",
    FileAction.FILE_ACTION_REMOVED: "removed",
    FileAction.FILE_ACTION_MODIFIED: "modified",
}
_ALL = (
    CompletionFilter.FILE_NOTIFY_CHANGE_FILE_NAME
    | CompletionFilter.FILE_NOTIFY_CHANGE_DIR_NAME
    | CompletionFilter.FILE_NOTIFY_CHANGE_ATTRIBUTES
    | CompletionFilter.FILE_NOTIFY_CHANGE_SIZE
    | CompletionFilter.FILE_NOTIFY_CHANGE_LAST_WRITE
)


class OpenFolder:
    """A folder that is open on somebody's screen: the server tells what happens in it (CHANGE_NOTIFY)."""

    def __init__(self, handle: Open) -> None:
        self._handle = handle
        self.events: list[Event] = []
        """All that it was told, oldest first."""
        self._watcher = self._ask()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def names(self, what: str) -> list[str]:
        """Names to which this happened, in order."""
        return [name for action, name in self.events if action == what]

    def _ask(self) -> FileSystemWatcher:
        watcher = FileSystemWatcher(self._handle)
        watcher.start(_ALL)
        return watcher

    def _listen(self) -> None:
        # Between an answer and the next question the server collects.
        with suppress(SMBException):
            while (told := self._watcher.wait()) is not None:
                self._watcher = self._ask()
                for one in told:
                    action = _ACTIONS.get(one["action"].get_value(), "?")
                    self.events.append((action, one["file_name"].get_value()))
                if not told:
                    self.events.append(("everything", ""))


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

    @contextmanager
    def watch(self, path: str) -> Iterator[OpenFolder]:
        """Keep a folder open, as Explorer does; what happens in it from now on is told."""
        with self._folder(path) as handle:
            folder = OpenFolder(handle)
            # Requests are taken in order: when this one is answered, the server watches.
            with self._folder(path):
                yield folder

    def names(self, path: str = "", pattern: str = "*") -> list[str]:
        """A listing, of names that match a pattern."""
        with self._folder(path) as handle:
            found = handle.query_directory(pattern, FileInformationClass.FILE_NAMES_INFORMATION)
            names = [one["file_name"].get_value().decode("utf-16-le") for one in found]
            return sorted(name for name in names if name not in (".", ".."))

    def pages(self, path: str) -> Iterator[list[str]]:
        """A listing with sizes and times, as Windows asks for it: the names of each answer of the server."""
        with self._folder(path) as handle, suppress(NoMoreFiles):
            while True:
                page = handle.query_directory("*", FileInformationClass.FILE_ID_BOTH_DIRECTORY_INFORMATION)
                yield [one["file_name"].get_value().decode("utf-16-le") for one in page]

    @contextmanager
    def _folder(self, path: str) -> Iterator[Open]:
        handle = Open(self.tree, path.replace("/", "\\"))
        handle.create(
            ImpersonationLevel.Impersonation,
            DirectoryAccessMask.FILE_LIST_DIRECTORY | DirectoryAccessMask.FILE_READ_ATTRIBUTES,
            FileAttributes.FILE_ATTRIBUTE_DIRECTORY,
            _TOGETHER,
            CreateDisposition.FILE_OPEN,
            CreateOptions.FILE_DIRECTORY_FILE,
        )
        try:
            yield handle
        finally:
            with suppress(SMBException):  # the server may have gone
                handle.close(get_attributes=False)

    def reconnect(self) -> None:
        """Connect to the share again, in the same session, as Windows does by itself when it is closed."""
        session = self.tree.session
        # Or the end of the session would be one of a connection that the server has ended.
        session.tree_connect_table.pop(self.tree.tree_connect_id, None)
        self.tree = TreeConnect(session, self.tree.share_name)
        self.tree.connect(require_secure_negotiate=False)

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
