"""The door to the kernel: FUSE requests -> tree and presenter, exceptions -> errno.

Lookup and readdir answer at once, because the kernel holds the folder while they run; only getattr and
open may wait for a render. Sizes that are not known yet are answered as 0 with no time to live, so that
the kernel asks getattr when somebody wants to know (this needs `default_permissions`). A handle holds the
bytes it was opened on. Everything that would write is EROFS, but for the calls by which this process
itself tells watchers what is new (`publish.py`): they succeed, and let the new name be seen. Used by
`mount.py`.
"""

import contextlib
import errno
import functools
import logging
import os
import stat
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, cast

import pyfuse3
import trio

from dicomfs.callers import Callers
from dicomfs.entries import Entry
from dicomfs.errors import RenderFailed, StoreError, StoreUnavailable
from dicomfs.folders import Folders
from dicomfs.inode import STORED, Inode
from dicomfs.present import Presenter
from dicomfs.publish import Act, Publisher, Step

P = ParamSpec("P")
T = TypeVar("T")

LONG_S: Final = 3600.0
"""For what cannot change unless we say so."""
FOLDER_S: Final = 1.0
"""For the times of folders: arrivals change them."""
_NAME_BYTES: Final = 255
_REAL_NAME: Final = b"glusterfs.get_real_filename:"
"""Extended attribute by which smbd asks for the stored spelling of a name, instead of scanning the folder."""
STORE_ATTRIBUTE: Final = "user.dicomfs.store"
"""Extended attribute that says of which store a file is; not listed, since copies would take it along."""
_NOT_SUPPORTED: Final = (b"system.", b"security.")
"""Extended attributes (access control lists, labels) that no file has: `ls -l` does not ask for them again,
and would, of every file, if only this one had none."""
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND

# Whatever is not in this table is a bug: logged with its traceback, answered EIO.
ERRNO: Final[dict[type[Exception], int]] = {
    RenderFailed: errno.EIO,
    StoreUnavailable: errno.EIO,
    StoreError: errno.EIO,
    FileNotFoundError: errno.EIO,  # an original that the index promises is not in the archive
    PermissionError: errno.EACCES,
    OSError: errno.EIO,
}

log = logging.getLogger(__name__)


def answered(
    handler: Callable[Concatenate["Door", P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Door", P], Coroutine[Any, Any, T]]:
    """Let a handler raise our own errors: each becomes the errno of the table. Counts what is asked."""

    asks = handler.__name__

    @functools.wraps(handler)
    async def wrapped(door: "Door", /, *args: P.args, **kwargs: P.kwargs) -> T:
        door.asked[asks] += 1
        try:
            return await handler(door, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except Exception as error:  # an exception that got out of here would end the mount
            for kind, number in ERRNO.items():
                if isinstance(error, kind):
                    log.warning("%s: %s", asks, error)
                    raise pyfuse3.FUSEError(number) from error
            log.exception("a bug in %s", asks)
            raise pyfuse3.FUSEError(errno.EIO) from error

    return wrapped


@dataclass(frozen=True, slots=True)
class _Handle:
    """An open file: bytes that were rendered, or a descriptor of the stored ones."""

    data: bytes | None
    fd: int = -1


def _open_whole(path: Path, size: int) -> int:
    """A descriptor of a stored file. Raises OSError, also when it has not that many bytes."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    found = os.fstat(fd).st_size
    if found != size:
        os.close(fd)
        raise OSError(errno.EIO, f"{path.name} has {found} bytes and should have {size}")
    return fd


class Door(pyfuse3.Operations):
    """FUSE handlers of one mount."""

    enable_writeback_cache = False

    def __init__(self, presenter: Presenter, publisher: Publisher, *, uid: int, gid: int, umask: int) -> None:
        super().__init__()
        self._presenter = presenter
        self._publisher = publisher
        publisher.stale = self.drop_remembered
        presenter.resized = self.drop_attributes
        self._tree = presenter.tree
        self._uid = uid
        self._gid = gid
        # The owner may make folders, or an ordinary user's mount could not tell of new ones.
        self._folder_mode = stat.S_IFDIR | (0o755 & ~umask) | 0o700
        self._file_mode = stat.S_IFREG | (0o444 & ~umask)
        self.asked: Counter[str] = Counter()
        """Requests so far, by handler; for the log."""
        self.callers = Callers()
        self.folders = Folders(self._tree, self._attributes)
        self._handles: dict[int, _Handle] = {}
        self._last_handle = 0

    # Attributes

    def _attributes(self, entry: Entry) -> pyfuse3.EntryAttributes:
        attr = pyfuse3.EntryAttributes()
        attr.st_ino = entry.inode.number
        attr.generation = 0
        attr.st_mode = self._folder_mode if entry.is_folder else self._file_mode
        attr.st_nlink = 2 if entry.is_folder else 1
        attr.st_uid, attr.st_gid = self._uid, self._gid
        attr.st_size = entry.size or 0
        attr.st_blksize = 131_072
        attr.st_blocks = (attr.st_size + 511) // 512
        attr.st_atime_ns = attr.st_mtime_ns = attr.st_ctime_ns = int(entry.modified * 1_000_000_000)
        attr.entry_timeout = LONG_S
        if entry.is_folder:
            attr.attr_timeout = FOLDER_S
        else:
            attr.attr_timeout = 0 if entry.size is None else LONG_S
        return attr

    def _inode(self, number: int) -> Inode:
        inode = Inode.of(number)
        if inode is None:
            raise pyfuse3.FUSEError(errno.ESTALE)
        return inode

    @answered
    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """The entry of that exact name; ENOENT, never remembered by the kernel, if there is none (yet)."""
        parent = self._inode(parent_inode)
        if name == b".":
            return await self.getattr(parent_inode, ctx)
        if name == b"..":
            above = self._tree.parent(parent) or self._tree.root
            return await self.getattr(above.number, ctx)
        if len(name) > _NAME_BYTES:
            raise pyfuse3.FUSEError(errno.ENAMETOOLONG)
        step = self._publisher.step_of(ctx.pid)
        if step is not None and (ghost := step.ghosts.get((parent_inode, name.decode("utf-8", "replace")))):
            attr = self._attributes(ghost)
            attr.entry_timeout = attr.attr_timeout = 0
            return attr
        try:
            entry = self._tree.lookup(parent, name.decode("utf-8"))
        except UnicodeDecodeError:
            entry = None
        if entry is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(entry)

    @answered
    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """What `stat` says, with the exact size: renders if that is not known yet."""
        parts = self._inode(inode)
        entry = self._tree.entry(parts)
        if entry is None:
            raise pyfuse3.FUSEError(errno.ESTALE)
        if entry.size is None:
            size = await self._wanted(ctx, self._presenter.size(parts))
            if size is None:
                raise pyfuse3.FUSEError(errno.ESTALE)
            entry = entry._replace(size=size)
        else:
            self._presenter.seen(parts)
        return self._attributes(entry)

    async def _wanted(self, ctx: pyfuse3.RequestContext, answer: Coroutine[Any, Any, T]) -> T:
        """What somebody waits for; EINTR, and no further work, once he has been killed."""
        with self.callers.waiting(ctx.pid):
            return await answer
        raise pyfuse3.FUSEError(errno.EINTR)

    # Folders

    @answered
    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        """Begin a listing."""
        return self.folders.open(self._inode(inode))

    @answered
    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Hand out entries after cookie `start_id`."""
        self._presenter.seen(self.folders.inode(fh))
        self.folders.hand_out(fh, start_id, token)

    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        """End a listing."""
        self.folders.close(fh)

    # Files

    @answered
    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        """Render if need be; the handle keeps these bytes until it is closed."""
        if flags & _WRITING:
            raise pyfuse3.FUSEError(errno.EROFS)
        data = self._presenter.at_hand(inode)
        if data is not None:
            handle = _Handle(data)
        elif (parts := self._inode(inode)).format == STORED:
            handle = await self._open_stored(parts)
        else:
            data = await self._wanted(ctx, self._presenter.contents(parts, opening=True))
            if data is None:
                raise pyfuse3.FUSEError(errno.ESTALE)
            handle = _Handle(data)
        self._last_handle += 1
        self._handles[self._last_handle] = handle
        return pyfuse3.FileInfo(fh=self._last_handle, keep_cache=True)

    async def _open_stored(self, inode: Inode) -> "_Handle":
        stored = self._tree.stored_file(inode)
        if stored is None:
            raise pyfuse3.FUSEError(errno.ESTALE)
        # In a thread: the folder may have to come from a disk that takes its time.
        return _Handle(None, await trio.to_thread.run_sync(_open_whole, *stored))

    @answered
    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        """Bytes of an open file. Never waits for a render."""
        handle = self._handles[fh]
        data = handle.data
        if data is not None:
            # pyfuse3 takes any buffer, and hands it to the kernel without another copy.
            return data if not off and size >= len(data) else cast(bytes, memoryview(data)[off : off + size])
        buffer = bytearray(size)
        try:
            count = os.preadv(handle.fd, [buffer], off, os.RWF_NOWAIT)
        except OSError:
            # Not in memory (or the file system cannot tell): the disk may take its time, in a thread.
            count = await trio.to_thread.run_sync(os.preadv, handle.fd, [buffer], off)
        if 0 < count < size:
            count += await trio.to_thread.run_sync(
                os.preadv, handle.fd, [memoryview(buffer)[count:]], off + count
            )
        return cast(bytes, memoryview(buffer)[:count])

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        """Close an open file."""
        handle = self._handles.pop(fh)
        if handle.fd >= 0:
            os.close(handle.fd)

    # There is nothing to write. The kernel takes ENOSYS for "never ask again", and lets the call succeed:
    # so `close` need not wait for us.

    @answered
    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        """Nothing to flush: `close` succeeds."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        """Nothing to write: succeeds."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def fsyncdir(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        """Nothing to write: succeeds."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        """Nothing to forget: inodes are arithmetic."""

    # The file system as a whole

    @answered
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Size of the disk that holds the originals; nothing of it is free to write here."""
        disk = await trio.to_thread.run_sync(self._tree.disk)
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = disk.f_frsize
        data.f_blocks, data.f_bfree, data.f_bavail = disk.f_blocks, disk.f_bfree, 0
        data.f_files, data.f_ffree, data.f_favail = disk.f_files, disk.f_ffree, 0
        data.f_namemax = _NAME_BYTES
        return data

    @answered
    async def getxattr(
        self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext
    ) -> bytes:
        """Answers smbd's question for the stored spelling of a name, and ours for the store."""
        if name == STORE_ATTRIBUTE.encode():
            return self._presenter.index.store_id.encode()
        if name.startswith(_NOT_SUPPORTED):
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        if not name.startswith(_REAL_NAME):
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        try:
            wanted = name[len(_REAL_NAME) :].decode("utf-8")
        except UnicodeDecodeError:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR) from None
        real = self._tree.real_name(self._inode(inode), wanted)
        if real is None:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        # smbd (4.17) takes the answer for a C string and reads on after it, into whatever lies there.
        return real.encode() + b"\0"

    async def listxattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> Sequence[pyfuse3.XAttrNameT]:
        """None."""
        return ()

    async def readlink(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileNameT:
        """There are no symbolic links."""
        raise pyfuse3.FUSEError(errno.EINVAL)

    # Everything that would change something

    async def _refuse(self, *_: Any) -> Any:
        raise pyfuse3.FUSEError(errno.EROFS)

    create = symlink = link = rename = _refuse  # type: ignore[assignment]
    setxattr = removexattr = write = _refuse  # type: ignore[assignment]

    # What our own thread does to be noticed; nothing here may wait, since the kernel holds the folder

    def _own_step(self, act: Act, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> Step:
        """The step that this call belongs to. Everybody else's call is EROFS."""
        step = self._publisher.step_of(ctx.pid)
        asked = (act, parent_inode, name)
        if step is None or (step.act, step.folder.number, step.name.encode()) != asked:
            raise pyfuse3.FUSEError(errno.EROFS)
        return step

    def _appear(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        step = self._own_step(Act.APPEAR, parent_inode, name, ctx)
        entry = self._tree.lookup(step.folder, step.name, hidden=True)
        if entry is None or step.appearance is None or entry.is_folder != step.is_folder:
            raise pyfuse3.FUSEError(errno.ENOENT)  # it has gone again
        self._tree.gate.release(step.appearance.rank, step.appearance.mark)
        return self._attributes(entry)

    @answered
    async def mkdir(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """A folder that is new appears."""
        return self._appear(parent_inode, name, ctx)

    @answered
    async def mknod(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        rdev: int,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """A file that is new appears."""
        return self._appear(parent_inode, name, ctx)

    @answered
    async def rmdir(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> None:
        """A folder that was forgotten goes."""
        self._own_step(Act.GO, parent_inode, name, ctx)

    @answered
    async def unlink(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> None:
        """A file that was forgotten goes."""
        self._own_step(Act.GO, parent_inode, name, ctx)

    @answered
    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """A file shows something else now: nothing is set. Never waits for its size, as getattr does."""
        if self._publisher.step_of(ctx.pid) is None:
            raise pyfuse3.FUSEError(errno.EROFS)
        entry = self._tree.entry(self._inode(inode))
        if entry is None:
            raise pyfuse3.FUSEError(errno.ESTALE)
        return self._attributes(entry)

    def drop_remembered(self) -> None:
        """Names are about to change or to go: ask the index again.

        What listings under way have fetched and not yet handed out names old inodes, and what was opened
        before may be gone.
        """
        self._presenter.forget_opened()
        self.folders.drop()

    def drop_attributes(self, inode: Inode) -> None:
        """A file has another size than was announced: the kernel must not go on believing the old one."""
        self.folders.drop()
        # Attributes only: to drop pages, the kernel would wait for reads that wait for us.
        with contextlib.suppress(OSError):  # it had forgotten the file
            pyfuse3.invalidate_inode(pyfuse3.InodeT(inode.number), attr_only=True)
