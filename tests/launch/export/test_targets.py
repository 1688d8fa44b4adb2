"""Exports, loaded by other libraries without the code that wrote them: equal embeddings."""

import contextlib
import io
import json
import re

import export_run
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from counterpoint.launch.commands.export import main
from counterpoint.launch.export.parity import texture
from counterpoint.launch.run.load import load_run
from counterpoint.models.weights import read_weights

PATHS = open_clip.factory._MODEL_CONFIG_PATHS
TEXTS = ["a red house", "two DOGS, 3 cats; isn't it?", "caf\u00e9", "long words " * 20, ""]
EVAL = {"class_path": "counterpoint.data.images.transforms.EvalTransform"}
SQUASH = EVAL | {"init_args": {"resize": "squash"}}
BILINEAR = EVAL | {"init_args": {"interpolation": "bilinear"}}
CROP = EVAL | {"init_args": {"crop": 0.8}}
RESNET = {
    "class_path": "counterpoint.models.image.TimmTower",
    "init_args": {
        "name": "resnet18",
        "image_size": 32,
        "model_args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
    },
}
CLASS_TOKEN = {"init_args": export_run.IMAGE["init_args"] | {"model_args": export_run.SIZES}}
NORMED_FIRST = {
    "init_args": {
        "name": "vit_base_patch32_clip_quickgelu_224",
        "image_size": 64,
        "model_args": {"embed_dim": 16, "depth": 1, "num_heads": 2},
    },
}
# Of a name that timm builds without a class token, with attention pooling.
ATTENTION_POOLED = {
    "init_args": {
        "name": "test_vit3",
        "image_size": 160,
        "model_args": {"drop_path_rate": 0.1, "weight_init": "jax"},
    },
}
QUICK = {"init_args": export_run.TEXT["init_args"] | {"activation": "quick_gelu"}}
RUNS = {
    "plain": export_run.config(),
    "class_token": export_run.config(export_run.IMAGE | CLASS_TOKEN, eval_transform=SQUASH),
    "bilinear": export_run.config(export_run.IMAGE | CLASS_TOKEN, eval_transform=BILINEAR),
    "normed_first": export_run.config(export_run.IMAGE | NORMED_FIRST, export_run.TEXT | QUICK),
    "attention_pooled": export_run.config(export_run.IMAGE | ATTENTION_POOLED),
    "convolutions": export_run.config(RESNET, eval_transform=CROP),
}


def own_features(run_dir, images, texts):
    """Embeddings of a run's own model, computed here from its parts."""
    run = load_run(run_dir)
    size = run.model.image_size
    pixels = [torch.tensor(list(image.getdata())).view(image.height, -1, 3) for image in images]
    tensors = [p.permute(2, 0, 1).to(torch.uint8) for p in pixels]
    batch = torch.stack([run.eval_transform(tensor, size, None) for tensor in tensors])
    ids, lengths = run.tokenizer(texts, run.model.context_length)
    with torch.inference_mode():
        return run.model.encode_image(batch), run.model.encode_text(ids, lengths)


def hf_features(folder, images, texts):
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    inputs = processor(
        text=texts, images=images, padding=True, truncation=True, return_tensors="pt"
    )
    with torch.inference_mode():
        outputs = model(**inputs)
    return outputs.image_embeds, outputs.text_embeds


def st_features(folder, images, texts):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    return tuple(torch.tensor(model.encode(items)) for items in (images, texts))


def open_clip_features(folder, images, texts, pretrained=None):
    name = str(folder) if pretrained else f"local-dir:{folder}"
    model, _, prepare = open_clip.create_model_and_transforms(name, pretrained=pretrained)
    model.eval()
    with torch.inference_mode():
        return (
            model.encode_image(torch.stack([prepare(image) for image in images]), normalize=True),
            model.encode_text(open_clip.get_tokenizer(name)(texts), normalize=True),
        )


READERS = {
    "open_clip": open_clip_features,
    "transformers": hf_features,
    "sentence-transformers": st_features,
}


@pytest.fixture(scope="module")
def run_dirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: export_run.write_run(folder / name, run) for name, run in RUNS.items()}


@pytest.fixture(autouse=True)
def installed(request):
    """Skips what needs a package that is not there."""
    if "target" in request.fixturenames:
        target = request.getfixturevalue("target")
        pytest.importorskip(target.replace("-", "_"))


@pytest.mark.parametrize(
    ("name", "target"),
    [
        *((name, "transformers") for name in RUNS if name not in ("bilinear", "attention_pooled")),
        *((name, "open_clip") for name in ("class_token", "normed_first", "bilinear")),
        ("attention_pooled", "open_clip"),
        ("plain", "sentence-transformers"),
    ],
)
def test_embeddings_are_the_runs_own(run_dirs, tmp_path, target, name):
    run_dir, out = run_dirs[name], tmp_path / "out"
    assert main([str(run_dir), str(out), "--to", target]) == 0
    if (target, name) == ("transformers", "normed_first"):
        assert json.loads((out / "config.json").read_text())["model_type"] == "clip"
    size = load_run(run_dir).model.image_size
    images = [texture(size, size, seed) for seed in range(20, 25)]
    for ours, theirs in zip(
        own_features(run_dir, images, TEXTS), READERS[target](out, images, TEXTS), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    # Images that are resized: the same to within a grey level, so about the same embeddings.
    images = [texture(size + 9, 2 * size, 30), texture(3 * size, size, 31)]
    ours, theirs = own_features(run_dir, images, TEXTS)[0], READERS[target](out, images, TEXTS)[0]
    assert F.cosine_similarity(ours, theirs).min() > 0.999


def test_the_flat_file_holds_the_weights_under_our_names(run_dirs, tmp_path, capsys):
    file = tmp_path / "deep" / "weights.safetensors"
    assert main([str(run_dirs["plain"]), str(file)]) == 0
    want = load_run(run_dirs["plain"]).model.state_dict()
    weights = read_weights(file)
    assert weights.keys() == want.keys()
    assert all(torch.equal(weights[name], want[name]) for name in want)
    assert sorted(path.name for path in file.parent.iterdir()) == ["weights.md", file.name]
    assert "image embeddings 0.0e+00" in capsys.readouterr().out


def test_the_average_is_exported(tmp_path):
    run_dir = export_run.write_run(tmp_path / "run", export_run.config(), average=0.5)
    file = tmp_path / "ema.safetensors"
    assert main([str(run_dir), str(file), "--weights", "ema"]) == 0
    want = load_run(run_dir).model.state_dict()
    weights = read_weights(file)
    assert all(torch.equal(weights[name], 0.5 * want[name]) for name in want)
    assert "moving average of step 3" in (tmp_path / "ema.md").read_text()


def test_a_bias_of_the_logits_is_said_to_be_missing(tmp_path, capsys):
    values = export_run.config(objective={"logit_bias_init": -10.0})
    run_dir, out = export_run.write_run(tmp_path / "run", values), tmp_path / "out"
    assert main([str(run_dir), str(out), "--to", "transformers"]) == 0
    sentence = "add -10.0000 to its logits"
    assert sentence in capsys.readouterr().out and sentence in (out / "README.md").read_text()


def test_datacomps_file_loads_by_the_name_of_an_architecture(run_dirs, tmp_path, monkeypatch):
    run_dir = run_dirs["normed_first"]
    sizes = {"layers": 1, "width": 16, "head_width": 8, "patch_size": 32, "image_size": 64}
    text = {"context_length": 12, "width": 16, "heads": 2, "layers": 1}
    known = {"embed_dim": 8, "quick_gelu": True, "vision_cfg": sizes, "text_cfg": text}
    (tmp_path / "Mini.json").write_text(json.dumps(known))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [*PATHS])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {})
    open_clip.add_model_config(tmp_path / "Mini.json")
    file = tmp_path / "mini.pt"
    assert main([str(run_dir), str(file), "--to", "datacomp"]) == 0
    assert '"Mini", pretrained=' in (tmp_path / "mini.md").read_text()
    images = [texture(64, 64, seed) for seed in range(3)]
    for ours, theirs in zip(
        own_features(run_dir, images, TEXTS),
        open_clip_features("Mini", images, TEXTS, str(file)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", ["safetensors", *READERS])
def test_the_cards_program_runs(run_dirs, tmp_path, monkeypatch, target):
    out = "out.safetensors" if target == "safetensors" else "out"
    monkeypatch.chdir(tmp_path)
    assert main([str(run_dirs["class_token"]), out, "--to", target]) == 0
    card = (tmp_path / ("out.md" if target == "safetensors" else "out/README.md")).read_text()
    (program,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(program, {})
    values = torch.tensor([float(x) for x in re.findall(r"-?\d+\.?\d*", printed.getvalue())])
    assert len(values) and values.isfinite().all()


def test_a_tokenizer_of_transformers_travels(tmp_path):
    text = export_run.TEXT["init_args"] | {"vocab_size": 200}
    hf = "counterpoint.data.text.tokenize.HFTokenizer"
    name = {"name": str(small_tokenizer(tmp_path / "tokenizer"))}
    values = export_run.config(
        text=export_run.TEXT | {"init_args": text},
        tokenizer={"class_path": hf, "init_args": name},
    )
    run_dir, out = export_run.write_run(tmp_path / "run", values), tmp_path / "out"
    assert main([str(run_dir), str(out), "--to", "transformers"]) == 0
    image = [Image.new("RGB", (24, 24), "red")]
    ours, theirs = (f(d, image, TEXTS)[1] for f, d in ((own_features, run_dir), (hf_features, out)))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """Attention pooling, texts that see their padding, a projection with a bias, a logit bias."""
    folder = tmp_path_factory.mktemp("siglip")
    tokenizer = small_tokenizer(folder / "tokenizer")
    sizes = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    image = {"name": "vit_base_patch16_siglip_224", "image_size": 24, "model_args": sizes}
    text = {"width": 16, "depth": 1, "num_heads": 2, "context_length": 12, "vocab_size": 20}
    values = export_run.config(
        image={"class_path": "counterpoint.models.image.TimmTower", "init_args": image},
        text={"class_path": "counterpoint.models.text.siglip.SiglipTextTower", "init_args": text},
        objective={"logit_bias_init": -10.0},
        tokenizer={
            "class_path": "counterpoint.data.text.tokenize.HFTokenizer",
            "init_args": {"name": str(tokenizer)},
        },
        eval_transform=SQUASH,
    )
    projections = {"image_projection": "none", "text_projection": "affine", "embed_dim": 16}
    values["model"] |= projections
    return export_run.write_run(folder / "run", values)


def test_siglips_towers_become_siglip(siglip, tmp_path):
    out = tmp_path / "out"
    assert main([str(siglip), str(out), "--to", "transformers"]) == 0
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(out), AutoProcessor.from_pretrained(out)
    assert type(model).__name__ == "SiglipModel" and float(model.logit_bias) == -10.0
    images = [texture(24, 24, seed) for seed in range(3)]
    inputs = processor(
        text=TEXTS, images=images, padding="max_length", truncation=True, return_tensors="pt"
    )
    with torch.inference_mode():
        theirs = model(**inputs)
    ours = own_features(siglip, images, TEXTS)
    torch.testing.assert_close(theirs.image_embeds, ours[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs.text_embeds, ours[1], rtol=0, atol=1e-5)


def test_siglips_towers_in_sentence_transformers(siglip, tmp_path):
    """Single short texts, too: they are padded to the whole length there."""
    pytest.importorskip("sentence_transformers")
    out = tmp_path / "out"
    assert main([str(siglip), str(out), "--to", "sentence-transformers"]) == 0
    images = [texture(24, 24, seed) for seed in range(3)]
    ours = own_features(siglip, images, TEXTS)
    for texts, want in ((TEXTS, ours[1]), (TEXTS[2:3], ours[1][2:3])):
        theirs = st_features(out, images, texts)
        torch.testing.assert_close(theirs[0], ours[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(theirs[1], want, rtol=0, atol=1e-5)


def small_tokenizer(folder):
    """Words of letters; the token that ends a text is not the one with the largest id."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", "[PAD]", "[X]", "[EOS]", "a", "red", "house", "two", "dogs", "cats"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="$A [EOS]", special_tokens=[("[EOS]", 3)]
    )
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "eos_token": "[EOS]"}
    PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(folder)
    return folder
