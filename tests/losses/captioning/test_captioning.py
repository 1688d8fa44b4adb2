"""What a caption decoder may see, and how captions are chosen; values are tested with all terms."""

import pytest
import torch

from counterpoint.losses.captioning.captioning import Captioning
from counterpoint.losses.captioning.decoder import CaptionDecoder


def decoder(**choices):
    torch.manual_seed(0)
    made = CaptionDecoder(6, 11, 7, width=8, depth=2, num_heads=2, **choices)
    torch.nn.init.normal_(made.outputs)
    return made.double()


def inputs():
    torch.manual_seed(1)
    return torch.randn(2, 5, 6).double(), torch.randint(0, 11, (2, 7))


def test_a_state_depends_on_the_tokens_before_it_and_in_parallel_on_none():
    model, (image, text) = decoder(), inputs()
    parallel = torch.tensor([False, True])
    states = model(image, text, parallel)
    for place in range(7):
        other = text.clone()
        other[:, place] = (other[:, place] + 1) % 11
        moved = (model(image, other, parallel) - states).abs().amax(2) > 0
        assert moved[0].tolist() == [t > place for t in range(7)]
        assert not moved[1].any()
    # All of the image counts, for both.
    for state in range(5):
        other = image.clone()
        other[:, state] += 1
        assert ((model(other, text, parallel) - states).abs().amax((1, 2)) > 0).all()


def test_positions_of_a_parallel_caption_see_one_another():
    model, (image, text) = decoder(), inputs()
    parallel = torch.tensor([False, True])
    states = model(image, text, parallel)
    with torch.no_grad():
        model.positions[6] += torch.randn(8)
    moved = (model(image, text, parallel) - states).abs().amax(2) > 0
    assert moved.tolist() == [[False] * 6 + [True], [True] * 7]


def test_the_choice_is_by_key_and_step_and_of_the_wanted_part():
    term = Captioning(decoder(), parallel=0.3)
    keys = torch.arange(5000) * 977
    first = term._chosen(keys)
    assert abs(float(first.double().mean()) - 0.3) < 4 * (0.3 * 0.7 / 5000) ** 0.5
    assert torch.equal(term._chosen(keys[7:]), first[7:])
    term.steps += 1
    assert not torch.equal(term._chosen(keys), first)
    for part, wanted in ((0.0, False), (1.0, True)):
        assert (Captioning(decoder(), parallel=part)._chosen(keys) == wanted).all()


def test_a_fresh_decoder_knows_nothing_and_steps_are_counted():
    model = CaptionDecoder(6, 11, 7, width=8, depth=2, num_heads=2)
    image, text = inputs()
    batch = {"text": text, "text_length": torch.tensor([3, 7]), "key": torch.arange(2)}
    term = Captioning(model)
    loss = term({"image.tokens": image.float()}, batch)["captioning"]
    torch.testing.assert_close(loss, torch.tensor(11.0).log())
    assert term.steps.item() == 1
    assert term.needs == ("image.tokens",)


def test_an_untrained_part_of_the_text_is_not_predicted():
    model, (image, text) = decoder(), inputs()
    batch = {"text": text, "text_length": torch.tensor([3, 7]), "key": torch.arange(2)}
    other = batch | {"text": text.clone()}
    other["text"][0, 3:] = (other["text"][0, 3:] + 1) % 11
    one, two = (
        Captioning(model).per_sample({"image.tokens": image}, given) for given in (batch, other)
    )
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image.tokens": torch.randn(2, 5, 4)}, "4 wide, .* made for 6: set its image_width to 4"),
        ({"text": torch.ones(2, 9).long()}, "takes 7: set its context_length to 9"),
        ({"text": torch.full((2, 7), 11)}, "the token 11, .* of 11: set its vocab_size"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    image, text = inputs()
    batch = {"text": text, "text_length": torch.tensor([3, 7]), "key": torch.arange(2)}
    given = {"image.tokens": image} | batch | change
    with pytest.raises(ValueError, match=message):
        Captioning(decoder()).per_sample(given, given)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="lies between 0 and 1"):
        Captioning(decoder(), parallel=1.5)
    with pytest.raises(ValueError, match="does not divide by num_heads 3: use 6"):
        CaptionDecoder(6, 11, width=8, num_heads=3)
    with pytest.raises(ValueError, match="name `text`, or a text of"):
        Captioning(decoder(), text="text.long").per_sample({"image.tokens": inputs()[0]}, {})


@pytest.mark.parametrize("skip", [0, 1])
def test_lengths_that_the_host_knows_change_nothing(skip):
    """As on a GPU, where the number of tokens to predict must not be read from the device."""
    states, text = inputs()
    term = Captioning(decoder(), skip=skip)
    batch = {"text": text, "text_length": torch.tensor([3, 1]), "key": torch.arange(2)}
    known = term.per_sample({"image.tokens": states}, batch)
    lengths = {"text_length.host": batch["text_length"].numpy()}
    assert torch.equal(term.per_sample({"image.tokens": states}, batch | lengths), known)
    assert known[0] > 0 and (known[1] > 0) == (skip == 0)
