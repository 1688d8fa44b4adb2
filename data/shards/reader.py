"""Random access to the samples of shards.

In: (shard, ordinal). Out: the raw bytes of that sample's members. Files are opened at
the first read and only the last few stay open; nothing is read ahead.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import SampleError
from ..urls import shown
from .cache import LocalStore, OpenShard, ShardStore
from .manifest import Manifest, is_remote
from .members import MemberIndex, open_index
from .transport import Transport

RawSample = dict[str, bytes | str]


class _Shard:
    """An open tar and its index."""

    def __init__(self, file: OpenShard):
        self.file = file
        self.index: MemberIndex = open_index(file.path, file.descriptor)


class ShardReader:
    """Random access to samples in tars, local or remote.

    Safe in loader workers: the open files are not part of the pickled state, and reads have their
    own offset, so that forked processes may use the same files.

    Args:
        urls: address of each shard.
        store: opens the files; by default only local ones.
        max_open: limit of open shards; more than the plan's lanes, so that none is opened twice.
        num_bytes: size of each shard (0: unknown); all unknown by default.
        sha256: checksum of each shard ("": unknown); all unknown by default.
    """

    def __init__(
        self,
        urls: Sequence[str],
        store: ShardStore | None = None,
        max_open: int = 64,
        num_bytes: Sequence[int] | np.ndarray | None = None,
        sha256: Sequence[str] | None = None,
    ):
        self.urls = urls
        self.store: ShardStore = LocalStore() if store is None else store
        self.max_open = max_open
        self.num_bytes = num_bytes
        self.sha256 = sha256
        self._open: OrderedDict[int, _Shard] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": OrderedDict()}

    def read(self, shard: int, ordinal: int) -> RawSample:
        """Reads one sample.

        Args:
            shard: index into `urls`.
            ordinal: number of the sample in the shard's file order.

        Returns:
            Member bytes by extension (the text after the first dot of the base name, lower-case),
            and the sample's key under `__key__`.

        Raises:
            SampleError: the shard cannot be opened or ends before the sample, or the sample is too
                large.
            ValueError: the shard's store cannot be used.
        """
        opened = self._opened(shard)
        try:
            return opened.index.read(opened.file.descriptor, ordinal)
        except SampleError as error:
            raise SampleError(
                error.cause, f"'{shown(self.urls[shard])}': {error.args[1]}"
            ) from error

    def _opened(self, shard: int) -> _Shard:
        if shard in self._open:
            self._open.move_to_end(shard)
            self._open[shard].file.touch()
        else:
            self._close_removed()
            num_bytes = 0 if self.num_bytes is None else int(self.num_bytes[shard])
            sha256 = "" if self.sha256 is None else self.sha256[shard]
            file = self.store.open(self.urls[shard], num_bytes, sha256)
            try:
                self._open[shard] = _Shard(file)
            except OSError as error:
                # A bad disk, a folder at the shard's path, a file server that has lost it.
                name = shown(self.urls[shard])
                raise SampleError("shard_missing", f"'{name}': {error.strerror}") from error
            if len(self._open) > self.max_open:
                self._open.popitem(last=False)
        return self._open[shard]

    def _close_removed(self) -> None:
        """Closes shards that the store has removed: only then is their disk space free."""
        for shard in [shard for shard, opened in self._open.items() if opened.file.is_removed()]:
            del self._open[shard]


@contextlib.contextmanager
def open_shard(manifest: Manifest, shard: int, transport: Transport) -> Iterator[ShardReader]:
    """Yields a reader of one shard, as its number 0; a remote one is fetched for the block.

    Raises:
        FetchError: it cannot be fetched.
    """
    url = manifest.urls[shard]
    if not is_remote(url):
        yield ShardReader([url])
        return
    num_bytes, sha256 = int(manifest.num_bytes[shard]), manifest.checksums[shard]
    with transport.temporary_copy(url, num_bytes, sha256) as path:
        yield ShardReader([str(path)])
