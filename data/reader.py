"""Any sample of any shard, by number.

In: (shard, ordinal). Out: the raw bytes of that sample's members. Files are opened when first
needed and only the last few stay open; nothing is read ahead of the request.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence

from .errors import SampleError
from .members import MemberIndex, open_index

RawSample = dict[str, bytes | str]


class _Shard:
    """An open tar and its index."""

    def __init__(self, url: str):
        try:
            self.descriptor = os.open(url, os.O_RDONLY)
        except OSError as error:
            self.descriptor = -1
            raise SampleError("shard_missing", f"'{url}': {error.strerror}") from error
        self.index: MemberIndex = open_index(url, self.descriptor)

    def __del__(self):
        if self.descriptor >= 0:
            os.close(self.descriptor)


class ShardReader:
    """Random access to samples in local tars.

    Safe to hand to loader workers: the open files are not part of the pickled state, and reads
    carry their own offset, so that forked processes may share them.

    Args:
        urls: Path of each shard.
        max_open: Shards kept open; more than the plan's lanes, so that none is opened twice.
    """

    def __init__(self, urls: Sequence[str], max_open: int = 64):
        self.urls = urls
        self.max_open = max_open
        self._open: OrderedDict[int, _Shard] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": OrderedDict()}

    def read(self, shard: int, ordinal: int) -> RawSample:
        """Reads one sample.

        Args:
            shard: Index into `urls`.
            ordinal: Number of the sample in the shard's file order.

        Returns:
            Member bytes by extension (the text after the first dot of the base name, lower-case),
            and the sample's key under `__key__`.

        Raises:
            SampleError: The shard cannot be opened or ends before the sample.
        """
        url = self.urls[shard]
        opened = self._opened(shard, url)
        index = opened.index
        if ordinal >= len(index):
            if index.damaged:
                raise SampleError("shard_truncated", f"'{url}': {index.damaged}")
            raise SampleError("wrong_count", f"'{url}' holds {len(index)} samples, not {ordinal}+1")
        first, last = index.firsts[ordinal : ordinal + 2].tolist()
        offsets = index.offsets[first:last].tolist()
        sizes = index.sizes[first:last].tolist()
        start = offsets[0]
        length = offsets[-1] + sizes[-1] - start
        try:
            span = os.pread(opened.descriptor, length, start)
        except OSError as error:
            raise SampleError("shard_truncated", f"'{url}': {error.strerror}") from error
        if len(span) < length:
            raise SampleError("shard_truncated", f"'{url}' became shorter while it was read")
        sample: RawSample = {"__key__": index.keys[ordinal]}
        kinds = index.kinds[first:last].tolist()
        for kind, offset, size in zip(kinds, offsets, sizes, strict=True):
            sample[index.extensions[kind]] = span[offset - start : offset - start + size]
        return sample

    def _opened(self, shard: int, url: str) -> _Shard:
        if shard in self._open:
            self._open.move_to_end(shard)
        else:
            self._open[shard] = _Shard(url)
            if len(self._open) > self.max_open:
                self._open.popitem(last=False)
        return self._open[shard]
