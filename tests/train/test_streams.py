"""Steps over several streams: value and gradients are the dense ones of the global batches."""

import pytest
import torch
from tiny_tower import tiny_vit
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.losses.scalars import Fixed, Temperature
from counterpoint.losses.siglip import SigLIP
from counterpoint.losses.wrappers.matryoshka import Matryoshka
from counterpoint.models.reducers.patches import RandomPatches
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.train.phases import Phase, Phases

PAIRS, SENTENCES = 12, 6
WEIGHT, SCALE = 0.5, 20.0


class Step(nn.Module):
    """What the LightningModule's training step computes, as DDP sees it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        text = ClipTextTower(width=16, depth=1, num_heads=2, context_length=6, vocab_size=50)
        self.model = TwoTower(tiny_vit(1), text, 8, logit_scale_init=7.0)
        views = ("text", "text.positive")
        terms = {
            "pairs": InfoNCE(scale="shared"),
            "sentences": InfoNCE(views=views, scale=Fixed(SCALE)),
            "again": InfoNCE(views=views),
        }
        self.objective = Objective(
            terms,
            weights={"sentences": WEIGHT},
            scalars={"shared": Temperature(5.0)},
            streams={"sentences": "nli", "again": "nli"},
        )

    def forward(self, batch, rows):
        self.objective.batch_rows = rows
        needs = self.objective.needs_of(batch)
        return self.objective(self.model(batch, needs), batch)[0]


def batch(with_pairs=True):
    g = torch.Generator().manual_seed(4)

    def texts(rows):
        return torch.randint(1, 50, (rows, 6), generator=g), torch.randint(
            2, 7, (rows,), generator=g
        )

    made = {"image": torch.randint(0, 256, (PAIRS, 3, 16, 16), dtype=torch.uint8, generator=g)}
    made["text"], made["text_length"] = texts(PAIRS)
    made["key"] = torch.arange(PAIRS)
    if not with_pairs:
        made = {}
    for name in ("nli/text", "nli/text.positive"):
        made[name], made[f"{name}_length"] = texts(SENTENCES)
    made["nli/key"] = torch.arange(SENTENCES)
    return made


def gradients(rank, world_size, with_pairs):
    step = Step().double()
    options = {"find_unused_parameters": not with_pairs}
    wrapped = DistributedDataParallel(step, **options) if world_size > 1 else step
    rows = {"": PAIRS // world_size, "nli": SENTENCES // world_size}
    value = wrapped({k: v[rank::world_size] for k, v in batch(with_pairs).items()}, rows)
    value.backward()
    return value.item(), {n: p.grad for n, p in step.named_parameters()}


def dense(with_pairs):
    """The losses as they stand in CLIP's paper, over whole batches in float64."""
    step, made = Step().double(), batch(with_pairs)

    def infonce(one, other, scale):
        logits, labels = scale * one @ other.T, torch.arange(len(one))
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    def encode(name):
        return F.normalize(step.model.project_text(made[name], made[f"{name}_length"]), dim=-1)

    one, other = encode("nli/text"), encode("nli/text.positive")
    loss = WEIGHT * infonce(one, other, SCALE) + infonce(one, other, step.model.logit_scale.exp())
    if with_pairs:
        image = F.normalize(step.model.project_image(made["image"]), dim=-1)
        loss = loss + infonce(image, encode("text"), step.objective.scalars["shared"]())
    loss.backward()
    return loss.item(), {n: p.grad for n, p in step.named_parameters()}


@pytest.mark.parametrize("with_pairs", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_value_and_gradients_are_those_of_the_dense_losses(gloo, world_size, with_pairs):
    want_value, want = dense(with_pairs)
    results = gloo(world_size, gradients, with_pairs)
    value = sum(r[0] for r in results) / world_size
    assert abs(value - want_value) <= 1e-10 * abs(want_value)
    scale = max(g.abs().max().item() for g in want.values() if g is not None)
    for _, got in results:
        for key, gradient in want.items():
            if gradient is None:  # of what the step does not use
                assert got[key] is None or not got[key].any(), key
            else:
                torch.testing.assert_close(
                    got[key], gradient, rtol=1e-10, atol=1e-12 * scale, msg=key
                )


def test_needs_are_those_of_the_streams_that_a_step_has():
    objective = Step().objective
    shared = {"logit_scale", "shared"}
    texts = {"nli/text", "nli/text.positive"}
    assert objective.needs - shared == {"image", "text"} | texts
    assert objective.needs_of(batch()) - shared == {"image", "text"} | texts
    assert objective.needs_of(batch(False)) - shared == texts


def test_nested_dimensions_of_a_stream():
    """A wrapped term reads its stream as well."""
    step = Step()
    term = Matryoshka(InfoNCE(views=("text", "text.positive")), widths=[4, 8])
    objective = Objective({"sentences": term}, streams={"sentences": "nli"})
    made = batch(False)
    loss, report = objective(step.model(made, objective.needs_of(made)), made)
    alone = Objective({"sentences": term})
    own = {name.removeprefix("nli/"): rows for name, rows in made.items()}
    want, _ = alone(step.model(own, alone.needs), own)
    assert torch.equal(loss, want) and len(report) == 2


def test_a_term_that_is_left_out_has_the_gradient_zero():
    own = InfoNCE(scale=Temperature(5.0))
    objective = Objective({"pairs": own, "sentences": InfoNCE()}, streams={"sentences": "nli"})
    g = torch.Generator().manual_seed(0)
    features = {f"nli/{n}": torch.randn(4, 8, generator=g) for n in ("image", "text")}
    features["logit_scale"] = torch.tensor([5.0], requires_grad=True)
    objective(features, {"nli/key": torch.arange(4)})[0].backward()
    assert [p.grad.tolist() for p in own.parameters()] == [[0.0]]


def test_patches_are_kept_by_the_keys_of_their_stream():
    step, g = Step().eval(), torch.Generator().manual_seed(0)
    images = {
        f"{stream}image": torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=g)
        for stream in ("", "nli/")
    }
    phases = Phases({"a": Phase(8, 8, 1.0, image_reducer=RandomPatches(0.5))})

    def encoded(first, first_of_stream):
        keys = {"key": torch.arange(8) + first, "nli/key": torch.arange(8) + first_of_stream}
        reduction = phases.reduction(0, 0)
        with torch.no_grad():
            features = step.model(images | keys, images, reduction)
        return features["image"], features["nli/image"]

    one, other = encoded(0, 50), encoded(100, 50)
    assert not torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert not torch.equal(one[1], encoded(0, 90)[1])


def test_a_stream_of_no_term_is_refused():
    with pytest.raises(
        ValueError, match=r"objective\.streams names \['other'\], which are no terms"
    ):
        Objective({"pairs": InfoNCE()}, streams={"other": "nli"})


def test_only_terms_of_weighted_streams_have_to_read_weights():
    class Blind(SigLIP):
        reads_weight = False

    objective = Objective({"pairs": InfoNCE(), "other": Blind()}, streams={"other": "nli"})
    objective.check_reads_weight([""])
    with pytest.raises(ValueError, match=r"objective\.terms\.other"):
        objective.check_reads_weight(["nli"])
