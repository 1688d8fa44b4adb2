"""What only a GPU can show: where weights are, what autocast does, on which device steps count."""

import pytest
import torch
from small_run import Recorded, batches, module, train

from counterpoint.models.teachers.frozen import FrozenTowers
from counterpoint.train.strategies.teacher_placement import place_teacher

pytestmark = pytest.mark.gpu
NEEDS = ("image", "text", "logit_scale")


class Seen(Recorded):
    """Keeps where and in what precision a layer of the image tower computes."""

    def on_train_start(self):
        super().on_train_start()
        found = self.seen = set()
        layer = self.model.image.trunk.blocks[0].attn.qkv
        layer.register_forward_hook(lambda m, i, o: found.add((m.weight.dtype, o.dtype, o.device)))


@pytest.mark.parametrize("placement", ["sharded", "host"])
def test_a_teacher_on_the_host_answers_on_the_device(placement):
    torch.manual_seed(0)
    towers = FrozenTowers(module(1).model, placement)
    layer = towers.model.image.trunk.blocks[0]
    batch = batches(1)[0]
    want = towers(batch, NEEDS)
    place_teacher(towers, torch.device("cuda"))
    where = []
    layer.mlp.register_forward_hook(lambda m, *_: where.append(m.fc1.weight.device.type))
    got = towers({name: value.cuda() for name, value in batch.items()}, NEEDS)
    assert where == ["cuda"]
    assert all(p.device.type == "cpu" and p.is_pinned() for p in layer.parameters())
    for name in NEEDS:
        torch.testing.assert_close(got[name].cpu(), want[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"])
@pytest.mark.parametrize(
    ("precision", "weight", "output"),
    [
        ("bf16-mixed", torch.float32, torch.bfloat16),
        ("bf16-true", torch.bfloat16, torch.bfloat16),
        ("16-true", torch.float16, torch.float16),
    ],
)
def test_precision_and_resume_under_zero(tmp_path, name, precision, weight, output):
    made = module(4, kind=Seen)
    options = {"accelerator": "gpu", "precision": precision}
    trainer = train(made, 1, name, data=batches(4)[:2], **options)
    assert {(w, o) for w, o, _ in made.seen} == {(weight, output)}
    assert {device.type for *_, device in made.seen} == {"cuda"}
    trainer.save_checkpoint(tmp_path / "step.ckpt")
    again = module(4, kind=Seen)
    resumed = train(again, 1, name, data=batches(4), ckpt_path=tmp_path / "step.ckpt", **options)
    assert resumed.global_step == 4 and len(again.losses) == 2
    whole = module(4, kind=Seen)
    train(whole, 1, name, data=batches(4), **options)
    assert again.losses == pytest.approx(whole.losses[2:], rel=1e-3)
