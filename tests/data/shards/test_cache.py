"""The cache of remote shards: bounded, fetched once, also after kills and failures."""

import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from full_disk import fill_disk
from hostile_http import serve
from waiting import PATIENCE, until

from counterpoint.data.errors import SampleError
from counterpoint.data.shards import cache as cache_module
from counterpoint.data.shards.cache import LocalStore, ShardCache
from counterpoint.data.shards.locks import locked, tried
from counterpoint.data.shards.reader import ShardReader
from counterpoint.data.shards.transport import Transport

FORK = multiprocessing.get_context("fork")


def hasty() -> Transport:
    """For a server that stalls. A slow machine may look like one, hence the many attempts."""
    return Transport(num_attempts=30, stall_timeout=1.0, first_delay=0.01)


def patient(num_attempts: int = 6, **settings) -> Transport:
    """For a server that does not, where requests are counted."""
    return Transport(num_attempts, stall_timeout=PATIENCE, first_delay=0.01, **settings)


@pytest.fixture
def source(tmp_path, make_tar, make_pairs):
    """A folder with six tars of four samples each."""
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(6):
        make_tar(folder / f"{number:05d}.tar", make_pairs(4 * number, 4))
    return folder


def addresses(server, num: int = 6) -> list[str]:
    return [f"{server.url}/{number:05d}.tar" for number in range(num)]


def sizes(source: Path) -> list[int]:
    return [path.stat().st_size for path in sorted(source.glob("*.tar"))]


def total(folder: Path) -> int:
    """Bytes of everything in a cache."""
    return sum(path.stat().st_size for path in folder.iterdir())


def kept(folder: Path) -> set[str]:
    """File names of the shards in a cache."""
    return {path.name.partition("-")[2] for path in folder.glob("*.tar")}


def age(folder: Path, seconds: int = 100) -> None:
    """Makes the last use of every shard in a cache longer ago."""
    for path in folder.glob("*.tar"):
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns - seconds * 10**9, status.st_mtime_ns))


def test_bytes_are_those_on_disk_while_shards_come_and_go(source, tmp_path):
    """Room for three of six: reading in turn fetches again, never more than fits, never wrongly."""
    local = ShardReader([str(path) for path in sorted(source.glob("*.tar"))])
    room = 3 * max(sizes(source)) + 4 * 4096
    with serve(source, seed=1, num_faults=2) as server:
        store = ShardCache(tmp_path / "cache", room, hasty())
        reader = ShardReader(addresses(server), store, num_bytes=sizes(source))
        for shard in [0, 1, 2, 3, 4, 5, 0, 1, 5, 5, 2]:
            for ordinal in range(4):
                assert reader.read(shard, ordinal) == local.read(shard, ordinal)
            assert total(tmp_path / "cache") <= room
        assert 0 < len(kept(tmp_path / "cache")) <= 3
        assert sum(opened.file.is_removed() for opened in reader._open.values()) <= 1
        assert server.whole["/00000.tar"] >= 2, "there was no room to keep it"


def test_the_shard_used_longest_ago_goes_first(source, tmp_path, monkeypatch):
    monkeypatch.setattr("counterpoint.data.shards.cache.TOUCH_SECONDS", 0.0)
    with serve(source) as server:
        cache = ShardCache(tmp_path / "cache", 3 * max(sizes(source)) + 4 * 4096, patient())
        reader = ShardReader(addresses(server), cache, num_bytes=sizes(source))
        first = reader.read(0, 0)
        for shard in (1, 2, 0, 3):
            age(tmp_path / "cache")
            reader.read(shard, 0)
        assert kept(tmp_path / "cache") == {"00000.tar", "00002.tar", "00003.tar"}
        assert reader.read(0, 0) == first
        assert server.whole["/00000.tar"] == 1


def read_all(urls, num_bytes, folder, seed, results) -> None:
    store = ShardCache(folder, 1 << 30, patient())
    reader = ShardReader(urls, store, num_bytes=num_bytes)
    order = sorted(range(len(urls)), key=lambda shard: (shard * 7 + seed) % 5)
    samples = {(shard, n): reader.read(shard, n) for shard in order for n in range(4)}
    results.put([samples[shard, n]["__key__"] for shard in range(len(urls)) for n in range(4)])


def test_processes_share_a_cache_and_fetch_each_shard_once(source, tmp_path):
    with serve(source) as server:
        results = FORK.Queue()
        arguments = (addresses(server), sizes(source), tmp_path / "cache")
        workers = [
            FORK.Process(target=read_all, args=(*arguments, seed, results)) for seed in range(4)
        ]
        for worker in workers:
            worker.start()
        keys = [results.get(timeout=PATIENCE) for _ in workers]
        for worker in workers:
            worker.join()
        assert keys == [[f"{number:09d}" for number in range(24)]] * 4
        assert server.asked == {f"/{number:05d}.tar": 1 for number in range(6)}
    # Shards and their indices: no lock, no part, no mark.
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".tar", ".index"}


def test_a_process_killed_while_it_fetches_leaves_nothing_broken(source, tmp_path, monkeypatch):
    monkeypatch.setattr("hostile_http.FAULTS", ("stall",))
    folder = tmp_path / "cache"
    with serve(source, num_faults=1) as server:
        url, num_bytes = addresses(server)[0], sizes(source)[0]

        def fetch() -> None:
            ShardCache(folder, 1 << 30, patient(1)).open(url, num_bytes)

        victim = FORK.Process(target=fetch)
        victim.start()
        until(lambda: any(path.stat().st_size for path in folder.glob("*part*")), victim.is_alive)
        assert not list(folder.glob("*.tar"))
        store = ShardCache(folder, 1 << 30, hasty())
        assert list(folder.glob("*part*")), "what a living process writes is left alone"
        victim.kill()
        victim.join()
        assert victim.exitcode == -signal.SIGKILL
        assert ShardReader([url], store, num_bytes=[num_bytes]).read(0, 3)["__key__"] == "000000003"
    assert {path.suffix for path in folder.iterdir()} == {".tar", ".index"}


def test_leftovers_go_and_strangers_stay(source, tmp_path):
    """A folder that was in use before may become the cache, and lose nothing by it."""
    folder = tmp_path / "cache"
    folder.mkdir()
    a, b, c = (f"{letter * 24}-0.tar" for letter in "abc")
    part = f"part-{0:016x}"
    ours = [f"{a}.lock", f".{a}.{part}", f"..{a}.{part}.{part}", f"{b}.index", c, f"{c}.index"]
    ours += [f".{c}.index.{part}"]
    others = ["notes.txt", "own.tar", "own.tar.index", "own.index", "own.lock", ".env"]
    others += ["own.part-1", "own.tar.bad", f"own.tar.{part}", ".own.tar.part-1", f".{part}"]
    long_ago = time.time() - 3600
    for name in (*ours, *others):
        (folder / name).write_text("7" * 1000)
        os.utime(folder / name, (long_ago, long_ago))
    room = 2 * max(sizes(source)) + 3 * 4096
    ShardCache(folder, room).require(0, 0)
    assert sorted(os.listdir(folder)) == sorted([*others, c, f"{c}.index"])
    # Own tars neither take room from the shards nor make some.
    for name in others:
        (folder / name).write_text("7" * room)
        os.utime(folder / name, (long_ago, long_ago))
    with serve(source) as server:
        store = ShardCache(folder, room, patient())
        for url, num_bytes in zip(addresses(server)[:3], sizes(source), strict=False):
            store.open(url, num_bytes)
    left = set(os.listdir(folder))
    assert left.issuperset(others) and c not in left
    assert {name.partition("-")[2] for name in left.difference(others)} == {
        "00001.tar",
        "00001.tar.index",
        "00002.tar",
        "00002.tar.index",
    }


def test_a_full_disk_is_one_sentence_and_replaces_no_sample(source, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    with serve(source) as server:
        cache = ShardCache(folder, 1 << 30, patient())
        fill_disk(cache._path(addresses(server)[0], 0, "").name, monkeypatch)
        reader = ShardReader(addresses(server), cache)
        message = r"^the disk of '.*cache' is full: 'http://.*/00000.tar' does not fit; free space"
        with pytest.raises(ValueError, match=message):
            reader.read(0, 0)
        assert not os.listdir(folder)
        assert server.asked["/00000.tar"] == 1
        monkeypatch.undo()
        assert reader.read(0, 0)["__key__"] == "000000000"


def test_a_folder_that_is_lost_meanwhile_is_one_sentence(source, tmp_path):
    folder = tmp_path / "cache"
    with serve(source) as server:
        cache = ShardCache(folder, 1 << 30, patient())
        assert cache.prefetch(addresses(server)[0])
        shutil.rmtree(folder)
        folder.write_text("a disk that is no longer mounted")
        message = r"^the cache folder '.*cache' cannot be used \(.*\); name a folder"
        for fetch in (cache.open, cache.prefetch):
            with pytest.raises(ValueError, match=message):
                fetch(addresses(server)[1])


def test_a_shard_that_stays_unreadable_is_not_asked_for_again(source, tmp_path, monkeypatch):
    monkeypatch.setattr("hostile_http.FAULTS", ("503",))
    folder = tmp_path / "cache"
    with serve(source, num_faults=99) as server:
        url = addresses(server)[0]
        stores = [ShardCache(folder, 1 << 30, patient(2)) for _ in range(2)]
        for store in (*stores, stores[0]):
            with pytest.raises(SampleError, match=r"shard_missing: .* in 2 attempts: .* 503"):
                ShardReader([url], store).read(0, 0)
            assert store.prefetch(url)
        assert server.asked["/00000.tar"] == 2, "a mark in the folder is seen by all"
        # A later run asks again, and so does this one after a while.
        (mark,) = folder.glob("*.bad")
        later = ShardCache(folder, 1 << 30, patient(2))
        later.started += 10
        stores[0].quarantine_seconds = 0.0
        server.num_faults = 0
        assert ShardReader([url], later).read(0, 0) == ShardReader([url], stores[0]).read(0, 0)
        assert not mark.exists()


def test_what_does_not_fit_is_said_with_the_size_needed(source, tmp_path):
    cache = ShardCache(tmp_path / "cache", 20_000)
    cache.require(3, 20_000)
    with pytest.raises(
        ValueError, match=r"20000 bytes .* is too small: .* 3 shards .*, 20001 byte"
    ):
        cache.require(3, 20_001)
    with pytest.raises(ValueError, match=r"has 30000 bytes, more than the whole cache of 20000"):
        cache.open("http://127.0.0.1:9/0.tar", 30_000)
    with pytest.raises(ValueError, match=r"disk of the cache folder .* has \d+ bytes for it"):
        ShardCache(tmp_path / "cache", 1 << 60).require(2, 1 << 59)
    (tmp_path / "file").write_text("")
    elsewhere = ShardCache(tmp_path / "elsewhere", 100)
    assert not elsewhere.folder.exists(), "made when needed: evaluation reads no shards"
    with pytest.raises(ValueError, match=r"cannot be used .*; name a folder"):
        ShardCache(tmp_path / "file", 100).require(0, 0)
    with pytest.raises(ValueError, match="a cache of 0 bytes"):
        ShardCache(tmp_path / "cache", 0)


def test_prefetching_waits_for_nobody_and_displaces_nothing_in_use(source, tmp_path):
    size = max(sizes(source))
    with serve(source) as server:
        urls, num_bytes = addresses(server), sizes(source)
        cache = ShardCache(tmp_path / "cache", 2 * size + 3 * 4096, patient())
        assert cache.prefetch(urls[0], num_bytes[0]) and cache.prefetch(urls[1], num_bytes[1])
        assert not cache.prefetch(urls[2], num_bytes[2])
        assert kept(tmp_path / "cache") == {"00000.tar", "00001.tar"}
        age(tmp_path / "cache")
        with locked(cache._beside(cache._path(urls[2], num_bytes[2], ""), "lock")):
            assert not cache.prefetch(urls[2], num_bytes[2])
        assert cache.prefetch(urls[2], num_bytes[2])
        assert kept(tmp_path / "cache") == {"00001.tar", "00002.tar"}
        assert cache.prefetch(str(source / "00000.tar"))


def test_a_damaged_copy_is_fetched_again_and_a_new_version_is_another_file(source, tmp_path):
    with serve(source) as server:
        url, num_bytes = addresses(server)[0], sizes(source)[0]
        cache = ShardCache(tmp_path / "cache", 1 << 30, patient())
        path = cache.open(url, num_bytes).path
        os.truncate(path, 100)
        assert os.path.getsize(cache.open(url, num_bytes).path) == num_bytes
        assert cache.open(url).path != path
        assert server.whole["/00000.tar"] == 3


def test_a_copy_is_read_once_a_run_if_its_checksum_is_known(source, tmp_path, monkeypatch):
    read = []
    found = cache_module.digest
    monkeypatch.setattr(cache_module, "digest", lambda path: read.append(path.name) or found(path))
    content = (source / "00000.tar").read_bytes()
    known = (len(content), hashlib.sha256(content).hexdigest())
    folder = tmp_path / "cache"
    with serve(source) as server:
        url = addresses(server)[0]

        def bytes_of_a_run(*opened: float) -> list[bytes]:
            """Of a store that began long ago, as others do that share the folder with it."""
            stores = [ShardCache(folder, 1 << 30, patient()) for _ in opened]
            for store, seconds in zip(stores, opened, strict=True):
                store.started += seconds
            shards = [store.open(url, *known) for store in stores]
            return [os.pread(shard.descriptor, 1 << 20, 0) for shard in shards]

        assert bytes_of_a_run(-100.0, -100.0) == [content] * 2 and read == []
        (copy,) = folder.glob("*.tar")
        copy.write_bytes(content[::-1])
        assert bytes_of_a_run(-100.0) == [content[::-1]] and read == [], "checked when it came"
        # A later run.
        assert bytes_of_a_run(100.0) == [content] and read == [copy.name]
        assert server.whole["/00000.tar"] == 2
        os.utime(folder / f"{copy.name}.checked", (0.0, 0.0))
        assert bytes_of_a_run(-100.0, -100.0) == [content] * 2
        assert read == [copy.name] * 2, "the first of two stores says so to the other"


def test_local_paths_and_commands(source, tmp_path):
    path = str(source / "00000.tar")
    cache = ShardCache(tmp_path / "cache", 1 << 30, patient(allow_pipe=True))
    with pytest.raises(ValueError, match=r"'http://h/0.tar' is not a local file; give .* a cache"):
        LocalStore().open("http://h/0.tar?signature=secret")
    assert cache.open(path).path == path
    commands = [path, f"pipe:cat {path}"]
    reader = ShardReader(commands, cache)
    assert reader.read(0, 2) == reader.read(1, 2)
    failing = ShardReader([f"pipe:cat {path}; false", f"pipe:head -c 2000 {path}"], cache)
    for shard in (0, 1):
        with pytest.raises(SampleError, match="shard_missing"):
            failing.read(shard, 0)
    with pytest.raises(SampleError, match="shard_missing"):
        cache.open(str(tmp_path / "none.tar"))


def test_a_lock_has_one_holder_and_leaves_no_file(tmp_path):
    path = tmp_path / "x.lock"
    with locked(path), tried(path) as second:
        assert second is None
    assert not path.exists()
    with tried(path) as alone:
        assert alone is not None
        # Who waited on a file that is gone must not take that for the lock.
        old = os.open(path, os.O_RDWR)
        path.unlink()
        with tried(path) as other:
            assert other is not None and not os.path.samestat(os.fstat(old), os.fstat(other))
        os.close(old)


def read_at_random(urls, num_bytes, folder, max_bytes, seed, done) -> None:
    chance = random.Random(seed)
    store = ShardCache(folder, max_bytes, hasty())
    reader = ShardReader(urls, store, max_open=2, num_bytes=num_bytes)
    for _ in range(150):
        shard, ordinal = chance.randrange(len(urls)), chance.randrange(4)
        store.prefetch(urls[ordinal], num_bytes[ordinal])
        sample = reader.read(shard, ordinal)
        assert sample["__key__"] == f"{4 * shard + ordinal:09d}"
        assert sample["txt"] == f"image {4 * shard + ordinal}".encode()
    done.put(seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4))
def test_crowds_deaths_and_a_hostile_server(source, tmp_path, seed):
    """Five processes in a cache of three shards; two of them are killed, and come again."""
    chance = random.Random(seed)
    folder, room = tmp_path / "cache", 3 * max(sizes(source)) + 4 * 4096
    with serve(source, seed, num_faults=6) as server:
        done = FORK.Queue()
        arguments = (addresses(server), sizes(source), folder, room)

        def start(number: int) -> multiprocessing.process.BaseProcess:
            process = FORK.Process(target=read_at_random, args=(*arguments, number, done))
            process.start()
            return process

        victims = [start(5), start(6)]
        workers = [start(number) for number in range(3)]
        for _ in range(10):
            time.sleep(chance.uniform(0.05, 0.5))
            victim = victims.pop(0)
            victim.kill()
            victim.join()
            victims.append(start(5 + len(victims)))
        for process in [*workers, *victims]:
            process.join(PATIENCE)
            assert process.exitcode == 0
        assert {"0", "1", "2"} <= {str(done.get(timeout=PATIENCE)) for _ in range(5)}
    ShardCache(folder, room)
    assert {path.suffix for path in folder.iterdir()} <= {".tar", ".index"}
    assert total(folder) <= room
