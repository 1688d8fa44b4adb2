"""A teacher answers the same wherever its weights are, and is where it says that it is."""

import open_clip
import pytest
import torch
import transformers
from small_run import batches, module, train
from torch import nn
from torch.distributed.tensor import DTensor

from counterpoint.losses.distillation.feature_regression import FeatureRegression
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.models.teachers.foreign import OpenClip, Transformers
from counterpoint.models.teachers.frozen import FrozenTowers
from counterpoint.train.strategies.teacher_placement import place_teacher

NEEDS = ("image", "text.raw", "logit_scale")
STRATEGIES = ("ddp", "fsdp2", "zero2", "zero3")


def teacher(placement):
    torch.manual_seed(9)
    return FrozenTowers(module(1).model, placement)


def layer_of(towers):
    return towers.model.image.trunk.blocks[0]


def run(rank, world_size, strategy, placement):
    """Losses of a run with this teacher, and what a rank has of a layer."""
    terms = {"infonce": InfoNCE(), "mimic": FeatureRegression("image", "teacher.x.image")}
    made = module(3, objective=Objective(terms), chunks=2)
    made.teachers["x"] = teacher(placement)
    train(made, world_size, strategy)
    weight = layer_of(made.teachers["x"]).mlp.fc1.weight
    here = weight.to_local().numel() if isinstance(weight, DTensor) else weight.numel()
    return made.losses, here


@pytest.mark.parametrize(
    ("strategy", "placement"),
    [
        pytest.param(s, k, marks=[] if (s, k) == ("ddp", "sharded") else pytest.mark.soak)
        for s in STRATEGIES
        for k in ("sharded", "host")
    ],
)
def test_losses_are_those_of_a_whole_teacher(gloo, strategy, placement):
    want = gloo(2, run, strategy, "device")
    got = gloo(2, run, strategy, placement)
    for (losses, here), (want_losses, size) in zip(got, want, strict=True):
        assert losses == want_losses and len(losses) == 3
        assert here == (size // 2 if placement == "sharded" else size)


def test_a_layer_on_the_host_is_copied_while_it_runs():
    towers, whole = teacher("host"), teacher("device")
    place_teacher(towers, torch.device("cpu"))
    place_teacher(towers, torch.device("cpu"))  # again, as when a fit begins anew
    layer = layer_of(towers)
    before = [p.data_ptr() for p in layer.parameters()]
    during = []
    layer.mlp.register_forward_hook(lambda *_: during.append([*map(ptr, layer.parameters())]))
    batch = batches(1)[0]
    got, want = towers(batch, NEEDS), whole(batch, NEEDS)
    assert all(torch.equal(got[name], want[name]) for name in NEEDS)
    assert len(during) == 1 and not set(during[0]) & set(before)
    assert [p.data_ptr() for p in layer.parameters()] == before
    outside = towers.model.image.trunk.pos_embed
    assert ptr(outside) not in during[0]


def test_a_layer_that_fails_is_put_back():
    towers = teacher("host")
    place_teacher(towers, torch.device("cpu"))
    layer = layer_of(towers)
    before = [p.data_ptr() for p in layer.parameters()]
    with pytest.raises(RuntimeError):
        layer(torch.zeros(1, 2, 3))
    assert [p.data_ptr() for p in layer.parameters()] == before


def ptr(tensor):
    return tensor.data_ptr()


class Flat(nn.Module):
    """A model whose towers name no layers."""

    def layers(self):
        return []


def test_a_teacher_without_layers_is_refused():
    with pytest.raises(ValueError, match=r"placement=host .* name no layers; leave placement out"):
        place_teacher(FrozenTowers(Flat(), "host"), torch.device("cpu"))  # type: ignore[arg-type]


def foreign(rank, world_size, folder, placement):
    kind = OpenClip if (folder / "open_clip_config.json").exists() else Transformers
    towers = kind(str(folder), placement=placement).build(None)
    place_teacher(towers, torch.device("cpu"))
    draw = torch.Generator().manual_seed(rank)
    size = towers.model.image_size
    batch = {
        "image": torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=draw),
        "text": torch.randint(1, 90, (3, 8), generator=draw),
        "text_length": torch.tensor([8, 5, 2]),
    }
    cut = sum(isinstance(p, DTensor) for p in towers.parameters())
    return {name: towers(batch, NEEDS)[name] for name in NEEDS}, cut


def open_clip_folder(folder):
    (folder / "open_clip_config.json").write_text(
        '{"model_cfg": {"embed_dim": 8, "vision_cfg": {"image_size": 32, "layers": 2, "width": 16,'
        '"head_width": 8, "patch_size": 16}, "text_cfg": {"context_length": 12, "vocab_size": 99,'
        '"width": 16, "heads": 2, "layers": 2}}, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3],'
        '"std": [0.5, 0.6, 0.7]}}'
    )
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")


def transformers_folder(folder):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    sizes["num_hidden_layers"] = 2
    text = sizes | {"vocab_size": 99, "max_position_embeddings": 12, "eos_token_id": 98}
    vision = sizes | {"image_size": 32, "patch_size": 16}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}).save_pretrained(folder)


@pytest.mark.soak
@pytest.mark.parametrize("layout", [open_clip_folder, transformers_folder])
@pytest.mark.parametrize("placement", ["sharded", "host"])
def test_models_of_other_libraries(gloo, tmp_path, layout, placement):
    layout(tmp_path)
    whole = gloo(2, foreign, tmp_path, "device")
    for (got, cut), (want, _) in zip(gloo(2, foreign, tmp_path, placement), whole, strict=True):
        for name in NEEDS:
            torch.testing.assert_close(got[name], want[name])
        assert (cut > 40) == (placement == "sharded")
