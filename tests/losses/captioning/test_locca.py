"""What each task of LocCa reads and writes; values and gradients are tested with all terms."""

import pytest
import torch

from counterpoint.losses.captioning.captioning import Captioning
from counterpoint.losses.captioning.decoder import CaptionDecoder
from counterpoint.losses.captioning.locca import LocCa, Task

PHRASE, BOX = "text.phrase", "text.box"
AREF = Task(read=(PHRASE,), write=(BOX,))


def make(tasks=None, **choices):
    torch.manual_seed(0)
    decoder = CaptionDecoder(6, 11, 7, width=8, depth=2, num_heads=2)
    torch.nn.init.normal_(decoder.outputs)
    return LocCa(decoder, {"aref": AREF} if tasks is None else tasks, **choices).double()


def inputs(present=(True, True, False)):
    torch.manual_seed(1)
    batch = {"key": torch.arange(3), "text": torch.randint(0, 11, (3, 5))}
    batch |= {PHRASE: torch.randint(0, 11, (3, 3)), BOX: torch.randint(0, 11, (3, 4))}
    batch |= {"text_length": torch.tensor([5, 2, 1]), f"{PHRASE}_length": torch.tensor([1, 3, 2])}
    batch[f"{BOX}_length"] = torch.tensor([4, 4, 1])
    batch |= {f"{name}.present": torch.tensor(present) for name in (PHRASE, BOX)}
    return {"image.tokens": torch.randn(3, 5, 6).double()}, batch


def changed(batch, name, row, place):
    other = batch | {name: batch[name].clone()}
    other[name][row, place] = (other[name][row, place] + 1) % 11
    return other


def test_what_is_read_is_not_predicted_and_counts_for_all_that_is_written():
    term, (features, batch) = make(), inputs()
    sequence, is_target, _ = term._sequence("aref", AREF, batch)
    # The box follows its phrase at once, however wide the phrases' rows are.
    assert sequence[0, :5].tolist() == [*batch[PHRASE][0, :1], *batch[BOX][0]]
    assert is_target.tolist() == [
        [False, True, True, True, True, False, False],
        [False, False, False, True, True, True, True],
        [False, False, True, False, False, False, False],
    ]
    loss = term(features, batch)["aref"]
    # Filling is not read; a phrase is; a sample without a region counts nothing.
    term.steps.zero_()
    for name, row, place, matters in (
        (PHRASE, 0, 1, False),
        (PHRASE, 0, 0, True),
        (BOX, 1, 3, True),
        (PHRASE, 2, 0, False),
        (BOX, 2, 0, False),
    ):
        assert (term(features, changed(batch, name, row, place))["aref"] != loss) == matters


def test_no_region_in_the_batch_is_no_loss_and_no_nan():
    term, (features, batch) = make(), inputs(present=(False, False, False))
    losses = term(features, batch)
    assert losses["aref"] == 0 and losses["cap"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in term.parameters())
    assert not term.prompts["aref"].grad.any()
    assert torch.equal(
        term.per_sample(features, batch), Captioning.per_sample(term, features, batch)
    )


@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 2.0, 3.0]).double()])
def test_losses_of_single_samples_add_up(weight):
    term, (features, batch) = make(parallel=0.3), inputs()
    batch |= {} if weight is None else {"weight": weight}
    loss = sum(term(features, batch).values())
    weights = torch.ones(3).double() if weight is None else weight
    rows = term.per_sample(features, batch)
    torch.testing.assert_close((weights * rows).sum() / weights.sum(), loss)


def test_captions_are_what_they_are_without_tasks():
    term, (features, batch) = make(), inputs()
    plain = Captioning(term.decoder)
    assert torch.equal(term(features, batch)["cap"], plain(features, batch)["captioning"])
    assert term.steps == plain.steps == 1


def test_each_task_has_a_prompt_of_its_own():
    tasks = {"aref": AREF, "gcap": Task(read=(BOX,), write=(PHRASE,))}
    term, (features, batch) = make(tasks), inputs()
    before = term(features, batch)
    with torch.no_grad():
        term.prompts["gcap"] += 1
    term.steps.zero_()
    after = term(features, batch)
    assert [name for name in before if before[name] != after[name]] == ["gcap"]
    assert [*before] == ["cap", "aref", "gcap"]


def test_lengths_that_the_host_knows_change_nothing():
    term, (features, batch) = make(skip=1), inputs()
    known = term.per_sample(features, batch)
    host = {f"{n}.host": batch[n].numpy() for n in batch if n.endswith("_length")}
    assert torch.equal(term.per_sample(features, batch | host), known)


def test_mistakes_are_refused():
    features, batch = inputs()
    with pytest.raises(ValueError, match=r"task aref with write=\[\]: name a text"):
        make({"aref": Task(write=())})
    with pytest.raises(ValueError, match="no task 'cap', which is captioning"):
        make({"cap": AREF})
    both = Task(read=(PHRASE, BOX), write=(BOX,))
    with pytest.raises(ValueError, match=r"the task both has 11 tokens .*: set its context_length"):
        make({"both": both})(features, batch)
    del batch[BOX]
    with pytest.raises(ValueError, match=r"'text.box': name `text`, or a text of data.texts"):
        make()(features, batch)
