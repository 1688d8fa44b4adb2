"""Caption choice after one linear map of the texts.

Koishigarina et al., "CLIP Behaves like a Bag-of-Words Model Cross-modally but not Uni-modally"
(2025): which attribute belongs to which object is in the embeddings of both towers, and a linear
map of the text embeddings, trained with captions whose attributes are swapped, makes them agree.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ....data.image_sets import ImageSet
from ..encode import Encoder
from ..outcomes import Outcomes
from .caption_choice import CaptionChoice, Question, caption_positions, choices

SCALE = 100.0


class MappedCaptionChoice(CaptionChoice):
    """Accuracy with a linear map that is fitted to other questions, and without it.

    Measures: those of `CaptionChoice` with the map, and `unmapped_accuracy`. Embeddings are
    normalised, before and after the map, under every objective. The map starts as the identity; its
    loss is the contrastive one, both ways, of images with all true captions of the training
    questions and with their own wrong ones, on all at once, by AdamW for a fixed number of steps.

    Args:
        train_questions: questions to fit the map to, as `questions`; None: the fields of `train`.
        train: their images; None: `data`.
        steps: of the fit.
        learning_rate: of AdamW, which decays along a cosine.
        choice: arguments of `CaptionChoice`.
    """

    def __init__(
        self,
        train_questions: str | None = None,
        train: ImageSet | None = None,
        steps: int = 200,
        learning_rate: float = 1e-3,
        **choice,
    ):
        super().__init__(**choice)
        if train_questions is None and train is None:
            raise ValueError(
                "give the questions that the map is fitted to, or images that hold them"
            )
        self.train_questions = train_questions
        self.train = self.data if train is None else train
        self.steps = steps
        self.learning_rate = learning_rate

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        everything = np.arange(len(self.train))
        self._train = self.read(self.train, self.train_questions, everything)
        if self.train is self.data:
            shared = {question.item for question in self._train} & set(chosen.tolist())
            if shared:
                raise ValueError(
                    f"{len(shared)} images are in the training questions and in the others; give "
                    "questions about other images"
                )
        return chosen

    def further_images(self) -> list[tuple[ImageSet, np.ndarray]]:
        return [(self.train, np.unique([question.item for question in self._train]))]

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        items = set(chosen.tolist())
        questions = [question for question in self._questions if question.item in items]
        without = self._choose(encoder, questions, None)
        keys = [question.key for question in questions]
        unmapped = Outcomes(float(without.mean()), without, keys)
        return {**super().measure(encoder, chosen), "unmapped_accuracy": unmapped}

    def answers(self, encoder: Encoder, questions: Sequence[Question]) -> np.ndarray:
        positions = caption_positions(self._train)
        text = encoder.text_features(list(positions))
        items = [question.item for question in self._train]
        image = encoder.image_features(self.train, items)
        right = torch.tensor([positions[question.right] for question in self._train])
        row = [i for i, question in enumerate(self._train) for _ in question.wrong]
        wrong = [positions[each] for question in self._train for each in question.wrong]
        weight = self._fit(image, text[right], text[torch.tensor(wrong)], torch.tensor(row))
        return self._choose(encoder, questions, weight)

    def _choose(
        self, encoder: Encoder, questions: Sequence[Question], weight: Tensor | None
    ) -> np.ndarray:
        positions = caption_positions(questions)
        text = encoder.text_features(list(positions))
        if weight is not None:
            text = F.normalize(text @ weight, dim=1)
        image = encoder.image_features(self.data, [question.item for question in questions])
        return choices(image, text, questions, positions)

    def _fit(self, image: Tensor, right: Tensor, wrong: Tensor, row: Tensor) -> Tensor:
        """Returns the map [d, d], applied from the right.

        Args:
            image: [n, d].
            right: the true caption of each [n, d].
            wrong: wrong captions [m, d].
            row: the image of each wrong caption, [m].
        """
        weight = nn.Parameter(torch.eye(image.shape[1], device=image.device))
        optimizer = torch.optim.AdamW([weight], lr=self.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, self.steps))
        own = torch.arange(len(image), device=image.device)
        row = row.to(image.device)
        # The same image or caption may occur twice: such pairs are no negatives.
        is_same = (image @ image.T > 1 - 1e-6) | (right @ right.T > 1 - 1e-6)
        hidden = is_same & ~torch.eye(len(own), dtype=torch.bool, device=image.device)
        for _ in range(self.steps):
            with torch.enable_grad():
                texts, others = (F.normalize(each @ weight, dim=1) for each in (right, wrong))
                logits = (SCALE * image @ texts.T).masked_fill(hidden, -torch.inf)
                # Each image's own wrong captions stand beside the true ones of all.
                hard = SCALE * (image[row] * others).sum(1)
                loss = contrastive_loss(logits, hard, row, own)
            (weight.grad,) = torch.autograd.grad(loss, [weight])
            optimizer.step()
            schedule.step()
        return weight.detach()


def contrastive_loss(logits: Tensor, hard: Tensor, row: Tensor, own: Tensor) -> Tensor:
    """Returns the mean of both ways.

    Args:
        logits: of images with true captions, [n, n].
        hard: of images with wrong captions, [m].
        row: the image of each of these, [m].
        own: 0 to n - 1.
    """
    highest = logits.detach().amax(1).scatter_reduce(0, row, hard.detach(), "amax")
    total = (logits - highest[:, None]).exp().sum(1)
    total = total.index_add(0, row, (hard - highest[row]).exp())
    by_image = total.log() + highest - logits.diagonal()
    return (by_image.mean() + F.cross_entropy(logits.T, own)) / 2
