"""A loaded model: what it takes, and that its features are those of evaluation and of stores."""

import io

import numpy as np
import pytest
import tiny
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from counterpoint.data.image_sets import FolderSet, ShardSet
from counterpoint.launch.api.embedder import Embedder, load_model
from counterpoint.launch.commands import data, embed
from counterpoint.launch.config import parser as run_config
from counterpoint.launch.run.build import build_module, build_parts
from counterpoint.losses.components.lorentz import LorentzDistance
from counterpoint.losses.components.similarity import Distance, Metric
from counterpoint.train.evaluation.encode import Encoder

TEXTS = ["a red fish", "the moon", "a house and a very tall tree in the sun", ""]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run with a moving average, whose weights are random, and shards with their manifest."""
    folder = tmp_path_factory.mktemp("embedder")
    shards = tiny.write_shards(folder / "pairs", 1, 11)
    manifest = folder / "train.parquet"
    assert data.main(["index", *map(str, shards), "--out", str(manifest)]) == 0
    values = tiny.config(manifest, objective="siglip")
    values |= {"ema": {"decay": 0.5}}
    values["data"]["num_workers"] = 0
    path = tiny.write_config(folder, values)
    parser = run_config.make_parser()
    parsed = run_config.parse(parser, ["--config", str(path)])
    module = build_module(build_parts(parser, parsed))
    with torch.no_grad():
        module.model.logit_scale.fill_(2.0)
        for parameter in module.ema.model.parameters():
            parameter.mul_(1.5)
    run = folder / "run"
    (run / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": module.state_dict()}, run / "checkpoints/step-00000003.ckpt")
    (run / "config.yaml").write_text(yaml.safe_dump(run_config.plain(parser, parsed)))
    return run


@pytest.fixture(scope="module")
def model(run_dir) -> Embedder:
    return load_model(run_dir, device="cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of several sizes and modes in a folder."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i, (mode, channels) in enumerate([("RGB", 3), ("RGBA", 4), ("L", 1), ("RGB", 3)]):
        pixels = rng.integers(0, 256, (20 + 7 * i, 31, channels), dtype=np.uint8).squeeze()
        Image.fromarray(pixels, mode).save(folder / f"{i}.png")
    return folder


def evaluated(model: Embedder) -> Encoder:
    """What evaluation makes of the same model."""
    read = model.tokenizer, model.eval_transform
    return Encoder(model.model, *read, torch.device("cpu"), batch_size=2, metric=model.metric)


def test_features_are_those_that_evaluation_ranks(model, photos):
    images = FolderSet(str(photos))
    paths = sorted(photos.glob("*.png"))
    with torch.no_grad():
        expected = evaluated(model).images(images, range(4))
        expected_texts = evaluated(model).plain_texts(TEXTS)
    features = model.encode_image(paths, batch_size=3)
    texts = model.encode_text(TEXTS, batch_size=3)
    torch.testing.assert_close(features, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(texts, expected_texts, atol=1e-6, rtol=0)
    assert features.std(0).min() > 1e-3, "images differ"
    torch.testing.assert_close(model.similarity(paths, TEXTS), features @ texts.T)
    raw = model.encode_image(paths, normalize=False)
    assert not torch.allclose(raw.norm(dim=1), torch.ones(4), atol=0.1)
    torch.testing.assert_close(raw / raw.norm(dim=1, keepdim=True), features)
    raw = model.encode_text(TEXTS[0], normalize=False)
    torch.testing.assert_close(raw / raw.norm(), texts[0])


def test_features_are_those_that_embed_stores(model, run_dir, tmp_path):
    words = ["--run", str(run_dir), "--out", str(tmp_path / "store"), "--precision", "float32"]
    assert embed.main([*words, "--device", "cpu"]) == 0
    (file,) = (tmp_path / "store").rglob("*.safetensors")
    stored = load_file(file)
    shards = ShardSet(str(run_dir.parent / "pairs/*.tar"))
    images = model.encode_image(shards.image(i) for i in range(11))
    texts = model.encode_text(shards.values("txt", range(11)))
    # Rows of a store are in the order of keys.
    similarity = images @ stored["image"].T
    order = similarity.argmax(1)
    assert sorted(order.tolist()) == list(range(11))
    torch.testing.assert_close(images, stored["image"][order], atol=1e-6, rtol=0)
    torch.testing.assert_close(texts, stored["text"][order], atol=1e-6, rtol=0)


def test_an_image_may_come_as_anything(model, photos):
    for path in sorted(photos.glob("*.png")):
        expected = model.encode_image(path)
        assert expected.shape == (8,)
        kinds = [str(path), path.read_bytes(), Image.open(path), np.array(Image.open(path))]
        for one in kinds:
            assert torch.equal(model.encode_image(one), expected), type(one)
    pixels = np.array(Image.open(photos / "3.png"))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    assert torch.equal(model.encode_image(tensor), expected)
    both = [np.stack([pixels, pixels]), torch.stack([tensor, tensor]), iter([pixels, tensor])]
    for several in both:
        rows = model.encode_image(several)
        assert rows.shape == (2, 8)
        torch.testing.assert_close(rows, expected.expand(2, -1), atol=1e-6, rtol=0)
    white = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    assert model.transform(white).min() == 255
    assert model.transform(photos / "0.png").shape == (3, 16, 16)


def lifted(rows, curvature, alpha):
    """Desai et al. (2023), equation 6: time first, float64."""
    v = alpha * rows.double()
    length = curvature**0.5 * v.norm(dim=1, keepdim=True)
    space = length.sinh() * v / length
    return torch.cat([(1 / curvature + space.square().sum(1, keepdim=True)).sqrt(), space], 1)


def test_in_other_geometries_similarity_is_the_losss(model):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 8, generator=generator), torch.randn(4, 8, generator=generator)
    distances = Embedder(model.model, model.tokenizer, model.eval_transform, Metric(Distance()))
    expected = -(x[:, None].double() - y.double()).norm(dim=2) / 8**0.5
    torch.testing.assert_close(distances.similarity(x, y).double(), expected, atol=1e-5, rtol=0)
    raw = distances.encode_text(TEXTS, normalize=False)
    torch.testing.assert_close(distances.similarity(x, TEXTS), distances.similarity(x, raw))
    # MERU: lifted to the hyperboloid of curvature -c, logits are -s times the geodesic distance.
    scalars = {"curvature": 2.0, "alpha_image": 0.5, "alpha_text": 0.7}
    lorentz = Metric(LorentzDistance(), {n: torch.tensor([value]) for n, value in scalars.items()})
    curved = Embedder(model.model, model.tokenizer, model.eval_transform, lorentz).to("cpu")
    image, text = (lifted(rows, 2.0, alpha) for rows, alpha in ((x, 0.5), (y, 0.7)))
    inner = image[:, 1:] @ text[:, 1:].T - image[:, :1] * text[:, 0]
    expected = -(np.e**2) * torch.acosh(-2.0 * inner) / 2.0**0.5
    found = curved.logit_scale * curved.similarity(x, y).double()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    # The cosine takes normalised features and those that are not.
    unit = x / x.norm(dim=1, keepdim=True)
    torch.testing.assert_close(model.similarity(x, y), model.similarity(unit, y))


def test_scale_bias_precision_and_average(run_dir, model, photos):
    assert model.logit_scale == pytest.approx(np.e**2) and model.logit_bias == -10.0
    path = photos / "0.png"
    half = load_model(run_dir, device="cpu", dtype=torch.bfloat16)
    assert half.model.image_projection.weight.dtype == torch.bfloat16
    assert half.logit_scale == model.logit_scale
    feature = half.encode_image(path)
    assert feature.dtype == torch.float32
    assert 0 < (feature - model.encode_image(path)).norm() < 0.05
    double = load_model(run_dir, device="cpu").to(dtype=torch.float64)
    assert double.encode_text("a fish").dtype == torch.float64
    averaged = load_model(run_dir, step=3, weights="ema", device="cpu")
    weight = averaged.model.image_projection.weight
    torch.testing.assert_close(weight, 1.5 * model.model.image_projection.weight)


def test_features_can_be_learnt_from(model, photos):
    features = model.encode_image(sorted(photos.glob("*.png")))
    head = torch.nn.Linear(8, 2)
    head(features).sum().backward()
    assert head.weight.grad is not None and not features.requires_grad


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("nowhere.png", "the image nowhere.png cannot be read .*No such file"),
        (b"no image", "the bytes of an image cannot be read"),
        (np.zeros((4, 4, 3)), "pixels are float64, and have to be uint8"),
        (torch.zeros(3, 4, 4), "pixels are torch.float32, and have to be uint8"),
        (np.zeros((3, 4, 4), np.uint8)[:, :, :2], r"ndarray of the shape \[3, 4, 2\] is no image"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), r"Tensor of the shape \[4, 4, 3\] is no image"),
        (np.zeros(4, np.uint8), r"the shape \[4\] is no image's"),
        ([3], "int is no image: an image is a path"),
        ([], "nothing to encode: the list is empty"),
        (None, "NoneType is nothing to encode"),
    ],
)
def test_what_is_no_image_is_refused(model, images, message):
    with pytest.raises(ValueError, match=message):
        model.encode_image(images)


def test_other_mistakes_are_named(model, run_dir, tmp_path):
    broken = io.BytesIO()
    Image.new("RGB", (30, 30)).save(broken, "PNG")
    (tmp_path / "half.png").write_bytes(broken.getvalue()[:60])
    with pytest.raises(ValueError, match=r"half\.png cannot be read"):
        model.encode_image(tmp_path / "half.png")
    with pytest.raises(ValueError, match="batch_size is 0"):
        model.encode_text(TEXTS, batch_size=0)
    with pytest.raises(ValueError, match="holds no checkpoint of step 4"):
        load_model(run_dir, step=4)
    path = run_dir / "checkpoints/step-00000003.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    other = tmp_path / "run/checkpoints"
    other.mkdir(parents=True)
    state = {name: value for name, value in state.items() if not name.startswith("ema.")}
    torch.save({"state_dict": state}, other / path.name)
    (tmp_path / "run/config.yaml").write_bytes((run_dir / "config.yaml").read_bytes())
    with pytest.raises(ValueError, match="holds no moving average"):
        load_model(tmp_path / "run", weights="ema")
