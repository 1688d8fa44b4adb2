"""SigLIP 2's three stages in small: what each adds, and bit-equal wherever it was killed."""

import json

import pytest
import torch
from processes import fit
from recorder import read
from test_resume import flat, losses
from test_stages import kill, write_config
from tiny import config, write_shards

from counterpoint.data.shards.index import index_shards
from counterpoint.models.image import resampled
from counterpoint.train.checkpointing.checkpoint import load, newest

STEPS = {"main": 4, "dense": 4, "high_resolution": 3}
LOSSES = "counterpoint.losses"
CROP = "counterpoint.data.images.transforms.TrainTransform"
REDUCERS = "counterpoint.models.reducers"


def named(class_path, **arguments):
    return {"class_path": class_path, "init_args": arguments}


def values(manifest):
    run = config(manifest, "siglip")
    contrast = run.pop("objective") | {"logit_bias_init": -3.0}
    decoder = {"image_width": 16, "vocab_size": 514, "context_length": 20, "width": 8, "depth": 1}
    contrast["terms"]["captioning"] = named(
        f"{LOSSES}.captioning.locca.LocCa",
        decoder=named(f"{LOSSES}.captioning.decoder.CaptionDecoder", num_heads=2, **decoder),
        tasks={
            "aref": {"read": ["text.phrase"], "write": ["text.box"]},
            "gcap": {"read": ["text.box"], "write": ["text.phrase"]},
        },
    )
    head = named(
        f"{LOSSES}.self_supervision.head.PrototypeHead",
        width=16,
        hidden=16,
        bottleneck=8,
        prototypes=12,
    )
    dense = {
        "local_to_global": named(
            f"{LOSSES}.self_supervision.local_to_global.LocalToGlobal",
            head=head,
            local=["image.local_1.pooled"],
            whole="ema.image.whole.pooled",
        ),
        "masked_prediction": named(
            f"{LOSSES}.self_supervision.masked_prediction.MaskedPrediction", head=head
        ),
    }
    random = named(f"{REDUCERS}.patches.RandomPatches", drop=0.5)
    hidden = named(f"{REDUCERS}.mask_token.MaskTokens", of=random)
    reducer = named(f"{REDUCERS}.on_views.OnViews", of=hidden, views=["image.whole"])

    def stage(name, **more):
        phase = {"samples": STEPS[name] * 12, "batch_size": 12, "learning_rate": 1e-3, **more}
        return {"phases": {name: phase}}

    late = {
        "data": {
            "views": {
                "whole": {"transform": named(CROP, scale=[0.7, 1.0])},
                "local_1": {"transform": named(CROP, scale=[0.3, 0.7]), "size": 8},
            }
        },
        "objective": {"terms": dense, "weights": {"masked_prediction": 0.25}},
        "ema": {"decay": 0.9},
    }
    del run["phases"]
    few = "counterpoint.data.text.few_merges.FewMerges"
    run["data"]["tokenizer"] = named(few, num_merges=0)
    run["data"]["train_transform"] = named(
        "counterpoint.data.images.transforms.EvalTransform", resize="squash"
    )
    regions = "counterpoint.data.text.regions"
    run["data"]["texts"] = {
        "phrase": {"caption": named(f"{regions}.RegionPhrase"), "context_length": 6},
        "box": {"caption": named(f"{regions}.RegionBox"), "context_length": 14},
    }
    text = run["model"]["text"]["init_args"]
    run["model"]["text"]["init_args"] = text | {"context_length": 8, "vocab_size": 514}
    run |= {"objective": contrast, "checkpoint": {"every_n_steps": 3, "keep": 0}}
    larger = {"model": {"image": {"init_args": {"image_size": 24}}}}
    run["stages"] = {
        "main": stage("main"),
        "dense": late | stage("dense", image_reducer=reducer),
        "high_resolution": late | larger | stage("high_resolution", image_reducer=reducer),
    }
    return run


def run_file(folder, manifest):
    folder.mkdir()
    run = values(manifest)
    keys = named("recorder.Keys", path=str(folder / "keys.txt"))
    progress = named("progress.Progress", path=str(folder / "at"))
    run["trainer"] |= {"callbacks": [keys, progress]}
    return ["--config", str(write_config(folder, run)), "--run_dir", str(folder / "run")]


def regions(number):
    """None, one or two of them."""
    box = [0.1, 0.2, 0.6 + number / 200, 1.0]
    return [{"box": box, "text": word} for word in ("sun", "moon")[: number % 3]]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    shards = write_shards(folder, regions=regions)
    index_shards([str(p) for p in shards], str(folder / "train.parquet"))
    return folder / "train.parquet"


def state(run_dir, step):
    return load(run_dir / f"checkpoints/step-{step:08d}.ckpt")["state_dict"]


@pytest.mark.soak
def test_each_stage_adds_its_losses_and_the_last_resamples_positions(tmp_path, manifest):
    whole = tmp_path / "whole"
    fit(run_file(whole, manifest), 1, whole / "log")
    rows = [json.loads(x) for x in (whole / "run/metrics.jsonl").read_text().splitlines()]
    named_losses = [sorted(k for k in row if k.startswith("loss/")) for row in rows]
    decoder = [f"loss/captioning/{task}" for task in ("aref", "cap", "gcap")]
    first = [*decoder, "loss/siglip"]
    assert (
        named_losses
        == [first] * 4 + [sorted([*first, "loss/local_to_global", "loss/masked_prediction"])] * 7
    )
    before, begun, after = (state(whole / "run", step) for step in (4, 6, 9))
    # What stage one learned goes on; the mask token and the centre are new, and learn.
    assert begun["objective.terms.captioning.steps"] == 6
    assert "model.image.mask_token" not in before and begun["model.image.mask_token"].any()
    assert begun["objective.terms.masked_prediction.centre"].any()
    ends = state(whole / "run", 8)
    for prefix in ("model.", "ema.model."):
        old, new = (s[f"{prefix}image.trunk.pos_embed"] for s in (ends, after))
        prefix_tokens = old.shape[1] - 4
        assert new.shape[1] == 9 + prefix_tokens
        expected = resampled(old[0, prefix_tokens:], (2, 2), (3, 3))
        assert (new[0, prefix_tokens:] - expected).abs().max() < 3e-3  # a step later


@pytest.mark.soak
@pytest.mark.parametrize("world_size", [1, 2])
def test_killed_in_the_late_stages_it_goes_on_bit_equal(tmp_path, manifest, world_size):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fit(run_file(whole, manifest), world_size, whole / "log")
    arguments = ["fit", *run_file(killed, manifest)]
    for step in (4, 7, 10):
        kill(arguments, killed, step, world_size)
        arguments = ["fit", "--resume", str(killed / "run")]
    fit(["--resume", str(killed / "run")], world_size, killed / "log")
    assert read(killed / "keys.txt") == read(whole / "keys.txt")
    assert losses(killed / "run") == losses(whole / "run")
    one, other = (load(newest(folder / "run")) for folder in (whole, killed))
    for part in ("state_dict", "optimizer_states"):
        a, b = dict(flat(one[part])), dict(flat(other[part]))
        assert a.keys() == b.keys() and a
        assert [key for key in a if not torch.equal(a[key], b[key])] == []


@pytest.mark.soak
def test_regions_may_be_a_stream_of_their_own(tmp_path, manifest):
    """Pairs without any beside them, on one process and on two."""
    pairs = tmp_path / "pairs.parquet"
    index_shards([str(p) for p in write_shards(tmp_path)], str(pairs))

    def trained(world_size):
        run = values(manifest)
        first = run.pop("stages")["main"]
        data = run["data"]
        shared = {name: data[name] for name in ("tokenizer", "train_transform")}
        stream = {
            "manifest": data["manifest"],
            "batch_size": 8,
            "texts": data.pop("texts"),
            **shared,
        }
        data |= {"manifest": str(pairs), "streams": {"regions": stream}}
        run["objective"]["streams"] = {"captioning": "regions"}
        del run["model"]["text"]["init_args"]["dropout"]  # ranks draw their own
        for name in ("proj_drop_rate", "attn_drop_rate", "drop_path_rate"):
            del run["model"]["image"]["init_args"]["model_args"][name]
        folder = tmp_path / f"of_{world_size}"
        folder.mkdir()
        path = write_config(folder, run | first)
        fit(["--config", str(path), "--run_dir", str(folder / "run")], world_size, folder / "log")
        lines = (folder / "run/metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(x).items() if k.startswith("loss")} for x in lines]

    one, two = trained(1), trained(2)
    tasks = {f"loss/captioning/{task}" for task in ("aref", "cap", "gcap")}
    assert [row.keys() for row in one] == [{"loss", "loss/siglip"} | tasks] * 4
    for row, other in zip(one, two, strict=True):
        assert other == pytest.approx(row, rel=2e-3)
