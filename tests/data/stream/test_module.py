"""Streams: batches as those of listed shards, shards shared out, faults counted, nothing hangs.

The independent reference for a batch's content is the engine of listed shards; for which samples
there are, the numbers written into the shards.
"""

import bz2
import gzip
import io
import json
import lzma
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from counterpoint.data.dataset import StepLoader
from counterpoint.data.errors import CAUSES
from counterpoint.data.images.transforms import EvalTransform
from counterpoint.data.module import PairsDataModule
from counterpoint.data.order.selection import LossWeights
from counterpoint.data.order.steps import Steps
from counterpoint.data.recipe import Text, View
from counterpoint.data.shards.index import index_shards
from counterpoint.data.stream import dataset as stream_dataset
from counterpoint.data.stream import shards as stream_shards
from counterpoint.data.stream.module import StreamingPairs, make_pairs
from counterpoint.data.stream.shards import Stream
from counterpoint.data.text.captions import FirstFound


@pytest.fixture
def write(tmp_path, make_tar, make_pairs):
    """Returns a function of sizes that writes shards with samples numbered on and on."""

    def shards(*sizes):
        first, paths = 0, []
        for number, size in enumerate(sizes):
            path = tmp_path / f"{number:03d}.tar"
            paths.append(make_tar(path, make_pairs(first, size)))
            first += size
        return paths

    return shards


def streaming(urls, phases=((10, 8),), num_workers=0, options=None, **choices):
    data = StreamingPairs(Stream(urls, **(options or {})), num_workers=num_workers, **choices)
    data.connect(Steps(list(phases)), seed=3, image_size=16, context_length=16)
    return data


def batches_of(data, rank=0, world_size=1):
    """Every batch of a rank, as it reaches the device."""
    dataset = data.train_dataset(rank, world_size)
    for parts in StepLoader(data.loader(dataset), dataset.parts, data.first_step):
        yield data.on_after_batch_transfer(data.on_before_batch_transfer(parts, 0), 0)


def errors(data):
    """Cause and shard of everything counted."""
    data.ledger.merge(data.ledger.take_delta())
    return {
        (row["cause"], Path(str(row["shard"])).name): row["samples"] for row in data.ledger.table()
    }


def test_batches_are_those_of_listed_shards(write, tmp_path):
    """The same entries, types and shapes; of each sample the same image, tokens and key."""
    paths = write(7, 5)
    views = {"large": View(EvalTransform(), size=24, same_as=None)}
    texts = {"json": ("json:caption",), "short": Text(context_length=6)}
    choices = {"train_transform": EvalTransform(), "views": views, "texts": texts}
    index_shards(paths, tmp_path / "m.parquet")
    listed = PairsDataModule(str(tmp_path / "m.parquet"), num_workers=0, **choices)
    listed.connect(Steps([(1, 12)]), seed=3, image_size=16, context_length=16)
    data = streaming(paths, [(1, 12)], options={"shuffle": 4}, **choices)
    data.check()
    (theirs,), (ours,) = (d.train_dataloader() for d in (listed, data))
    (theirs,), (ours,) = theirs, data.on_before_batch_transfer(ours, 0)
    assert list(ours) == list(theirs)
    order = [torch.argsort(batch["key"]) for batch in (ours, theirs)]
    assert len(set(ours["key"].tolist())) == 12
    for entry in theirs:
        assert ours[entry].dtype == theirs[entry].dtype, entry
        assert ours[entry].stride() == theirs[entry].stride(), entry
        assert torch.equal(ours[entry][order[0]], theirs[entry][order[1]]), entry
    assert not torch.equal(ours["key"], theirs["key"])


@pytest.mark.parametrize("resampled", [False, True])
def test_ranks_and_workers_share_uneven_shards_and_get_equal_batches(write, resampled):
    """Two ranks of two workers: each shard is read by one worker alone; all run to the end."""
    sizes = (1, 9, 2, 7, 3, 1, 5)
    paths = write(*sizes)
    steps = 30
    readers = defaultdict(set)
    seen = Counter()
    for rank in range(2):
        data = streaming(paths, [(steps, 8)], 2, {"shuffle": 3, "resampled": resampled})
        batches = list(batches_of(data, rank, 2))
        assert [len(batch["key"]) for batch in batches] == [4] * steps
        assert not errors(data)
        for step, batch in enumerate(batches):
            for shard in batch["shard"].tolist():
                readers[shard].add((rank, step % 2))
            seen.update(batch["text"][:, 2].tolist())
    assert set(readers) == set(range(len(sizes)))
    if not resampled:
        assert all(len(workers) == 1 for workers in readers.values())
        assert {frozenset(w) for w in readers.values()} == {
            frozenset({(rank, worker)}) for rank in range(2) for worker in range(2)
        }


def test_each_worker_goes_through_its_shards_in_turn(write):
    """Without resampling a pass has each sample once, in another order each time."""
    paths = write(7, 5, 9, 3)
    data = streaming(paths, [(3, 24)], options={"shuffle": 5})
    passes = [batch["key"].tolist() for batch in batches_of(data)]
    assert len({frozenset(keys) for keys in passes}) == 1 and len(set(passes[0])) == 24
    assert len({tuple(keys) for keys in passes}) == 3
    plain = streaming(paths, [(2, 24)], options={"shuffle": 0, "shuffle_shards": False})
    first, second = (batch["shard"].tolist() for batch in batches_of(plain))
    assert first == second == [0] * 7 + [1] * 5 + [2] * 9 + [3] * 3


def test_a_sample_draws_anew_each_time(write):
    (path,) = write(1)
    (batch,) = batches_of(streaming(path, [(1, 6)]))
    assert len({tuple(row) for row in batch["image.augmentation"].tolist()}) == 6


def test_a_resumed_stream_begins_at_its_step_and_is_another_one(write):
    paths = write(7, 5, 9, 3)
    data = streaming(paths, [(4, 6), (4, 8)])
    before = list(batches_of(data))
    state = data.state_dict()
    other = streaming(paths, [(4, 6), (4, 8)])
    other.load_state_dict(state | {"step": 5})
    loader = other.train_dataloader()
    assert len(loader) == 8
    after = list(batches_of(other))
    assert [len(batch["key"]) for batch in after] == [8] * 3
    assert other.ledger.samples == 0  # not merged yet
    assert [b["key"].tolist() for b in before[5:]] != [b["key"].tolist() for b in after]
    assert data.fingerprint == "stream" and data.epoch_size is None
    assert "cannot be repeated" in data.caveat and "4 shards" in data.caveat


def test_large_batches_come_in_parts(write, monkeypatch):
    monkeypatch.setattr(stream_dataset, "PART_BYTES", 3 * 16 * 16 * 3)
    data = streaming(write(7, 5), [(3, 8)], num_workers=2)
    dataset = data.train_dataset()
    assert dataset.parts.num_parts(0) == 3
    batches = list(batches_of(data))
    assert [len(batch["image"]) for batch in batches] == [8] * 3


def test_everything_that_cannot_be_used_is_counted(broken):
    """One cause a shard; the others' samples are used."""
    manifest, bad = broken
    paths = [str(url) for url in manifest.urls]
    commands = [f"pipe:cat '{path}'" for path in paths]
    num_good = 30 - len(bad)
    data = streaming(commands, [(1, num_good)], allow_pipe=True, options={"shuffle": 0})
    data.check()
    (batch,) = batches_of(data)
    assert len(set(batch["key"].tolist())) == num_good and not batch["status"].any()
    found = {
        (cause, shard.split("/")[-1].rstrip("'")): n for (cause, shard), n in errors(data).items()
    }
    wanted = Counter((cause, f"{shard}.tar") for (shard, _), cause in bad.items())
    # Nobody knows how many samples a shard would have had. The last one has lost its text.
    wanted["shard_truncated", "4.tar"] = wanted["no_caption", "4.tar"] = 1
    del wanted["shard_missing", "3.tar"]
    assert found.pop(("shard_truncated", "3.tar")) == 1  # the command runs, and prints nothing
    assert found == wanted


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz"])
def test_compressed_shards_are_whole(write, suffix):
    (path,) = write(5)
    if suffix:
        opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[suffix]
        with opener(path + suffix, "wb") as file:
            file.write(Path(path).read_bytes())
    data = streaming([path + suffix], [(1, 10)])
    assert len(list(batches_of(data))) == 1 and not errors(data)


def test_a_missing_file_and_a_failing_command_are_counted(write, tmp_path):
    paths = write(4, 4, 4)
    urls = [*paths[:2], f"pipe:cat {paths[2]}; exit 3"]
    options = {"shuffle": 0, "shuffle_shards": False}
    data = streaming(urls, [(1, 20)], allow_pipe=True, options=options)
    dataset = data.train_dataset()
    Path(paths[0]).unlink()
    (batch,) = dataset
    counts = Counter(map(tuple, batch["skipped"].tolist()))
    # Two passes, and the first two samples of the third.
    missing, failed = CAUSES.index("shard_missing"), CAUSES.index("shard_truncated")
    assert counts == {(missing, 0, 0): 3, (failed, 0, 2): 2}


def test_what_a_command_wrote_before_it_failed_is_read(write, monkeypatch):
    """However early it failed: here before the first byte is read."""

    def opened(url):
        stream = gopen(url)
        stream.proc.wait()
        return stream

    gopen = stream_shards.gopen
    monkeypatch.setattr(stream_shards, "gopen", opened)
    (path,) = write(4)
    options = {"shuffle": 0, "shuffle_shards": False}
    data = streaming([f"pipe:cat {path}; exit 3"], [(1, 8)], allow_pipe=True, options=options)
    (batch,) = data.train_dataset()
    # One whole pass, and one whose command has not been closed yet.
    assert batch["skipped"].tolist() == [[CAUSES.index("shard_truncated"), 0, 0]]


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("resampled", [False, True])
def test_a_stream_without_a_sample_ends_in_a_sentence(write, num_workers, resampled):
    paths = write(4, 4)
    urls = [f"pipe:cat {path}; false" for path in (paths[0] + ".none", paths[1] + ".none")]
    data = streaming(urls, [(1, 4)], num_workers, {"resampled": resampled}, allow_pipe=True)
    words = "64 shards in a row" if resampled else "no sample in a whole pass.*2 shard_truncated"
    with pytest.raises(ValueError, match=f"data.webdataset: .*{words}"):
        list(batches_of(data))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_row_of_bad_samples_ends_in_a_sentence(write, num_workers, monkeypatch):
    monkeypatch.setattr(stream_shards, "MAX_BAD_SAMPLES", 20)
    data = streaming(write(4, 4), num_workers=num_workers, caption=("txtt",))
    with pytest.raises(ValueError, match=r"20 samples in a row.*no_caption: .*data\.caption"):
        list(batches_of(data))


def small_ones_decoded(dataset):
    """A user's stages."""
    few = dataset.select(lambda sample: json.loads(sample["json"])["key"] < "000000006")
    return few.decode("pil").map(lambda sample: {**sample, "txt": sample["txt"].upper()})


def test_ones_own_stages(write):
    paths = write(7, 5)
    choices = {
        "train_transform": EvalTransform(),
        "options": {"shuffle": 0, "shuffle_shards": False},
    }
    (plain,) = batches_of(streaming(paths, [(1, 6)], **choices))
    choices["options"] = choices["options"] | {"pipeline": small_ones_decoded}
    (decoded,) = batches_of(streaming(paths, [(1, 12)], **choices))
    assert torch.equal(decoded["key"][:6], plain["key"])
    assert torch.equal(decoded["key"][6:], plain["key"])
    assert torch.equal(decoded["image"][:6], plain["image"])
    assert torch.equal(decoded["text"][:6], plain["text"])  # CLIP's tokenizer has no capitals


@pytest.mark.parametrize(
    ("pipeline", "words"),
    [
        (lambda dataset: dataset.to_tuple("png", "txt"), "yields a tuple; it must yield samples"),
        (lambda dataset: dataset.select(lambda sample: False), "no sample in a whole pass"),
        (lambda dataset: iter(dataset), r"returns a generator.*dataset\.compose\(STAGE\)"),
        (lambda dataset: dataset.decode("torchrgb"), "member 'png' a Tensor; leave its bytes"),
    ],
)
def test_stages_that_yield_no_samples_are_refused(write, pipeline, words):
    data = streaming(write(4), options={"pipeline": pipeline})
    with pytest.raises(ValueError, match=words):
        list(batches_of(data))


def test_images_may_be_decoded_in_any_usual_form(make_image):
    image = Image.open(io.BytesIO(make_image(1)))
    array = np.array(image)
    for form in (image, array, torch.from_numpy(array).permute(2, 0, 1)):
        raw = stream_dataset.as_members(
            {"__key__": "a", "__url__": "u", "png": form, "n.npy": array}
        )
        assert torch.equal(raw["png"].pixels(), torch.from_numpy(array).permute(2, 0, 1))
        assert raw.keys() == {"__key__", "png"}
    raw = stream_dataset.as_members({"__key__": 7, "cls": 3, "json": {"a": 1}, "txt": "ü"})
    assert raw == {"__key__": "7", "cls": b"3", "json": b'{"a": 1}', "txt": "ü".encode()}


@pytest.mark.parametrize(
    ("url", "choices", "words"),
    [
        ("pipe:touch TOUCHED", {}, "is a command.*data.allow_pipe=true"),
        ("s3://b/{000..001}.tar", {"allow_pipe": True}, "opens no s3:// .*pipe:aws s3 cp"),
        ("https://u:secret@h/0.tar?sig=secret", {}, "'https://h/0.tar' with the program curl"),
        ("none-{0..1}.tar", {}, "no shard found for 'none-0.tar', 'none-1.tar'"),
        ("https://h/folder/", {}, "name each of its shards"),
    ],
)
def test_addresses_that_cannot_be_opened(url, choices, words, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda program: None)
    data = streaming(url.replace("TOUCHED", str(tmp_path / "touched")), **choices)
    with pytest.raises(ValueError, match=words) as caught:
        data.check()
    assert "secret" not in str(caught.value) and not (tmp_path / "touched").exists()


def test_fewer_shards_than_workers(write):
    paths = write(4, 4, 4)
    data = streaming(paths, num_workers=2)
    with pytest.raises(ValueError, match=r"3 shards, and 2 processes with 2 .*data.num_workers=1"):
        data.train_dataset(0, 2)
    with pytest.raises(ValueError, match="fewer processes"):
        data.train_dataset(0, 4)
    assert streaming(paths, num_workers=2, options={"resampled": True}).train_dataset(0, 2)
    with pytest.raises(ValueError, match=r"data\.webdataset\.shuffle=-1"):
        Stream("a", shuffle=-1)


def test_choices_that_need_listed_shards_are_refused():
    stream = Stream("a.tar")
    usual = {"caption": ("txt",), "lanes": 16, "keep_lists": (), "sources": None, "num_workers": 3}
    assert isinstance(make_pairs(webdataset=stream, **usual), StreamingPairs)
    for name, value in {
        "lanes": 8,
        "keep_lists": ("k.parquet",),
        "keep_weights": LossWeights(),
        "temperature": 2.0,
        "same_as": "teacher.augmentation",
    }.items():
        with pytest.raises(ValueError, match=f"data.{name} needs listed shards"):
            make_pairs(webdataset=stream, **{name: value})
    with pytest.raises(ValueError, match=r"data\.manifest needs listed shards"):
        make_pairs("m.parquet", stream)
    with pytest.raises(ValueError, match=r"data\.manifest is missing.*data\.webdataset\.urls"):
        make_pairs(caption=FirstFound())
    assert isinstance(make_pairs("m.parquet", lanes=3), PairsDataModule)
