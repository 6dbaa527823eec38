"""The labels of images: how several are asked for, and the label sets of training images that generation draws from.

A label set is a tuple of sorted indices of the names; in a tensor, a row of them, padded by the number of names.
"""

import difflib
from collections.abc import Collection, Sequence
from functools import lru_cache

import numpy as np
import torch

from utils.core.files import UserError

JOIN = "+"  # between the labels of one image
MOST_SETS = 2**16  # rows of the table of label sets; of more images a random sample
SHOWN = 20  # names in a message

LabelSet = tuple[int, ...]


def listed(names: Sequence[str]) -> str:
    """The first names, and how many there are if there are more."""
    more = f", … ({len(names):,} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def parse_labels(text: str, names: Sequence[str]) -> LabelSet:
    """The label set that a text asks for: a name, several joined by "+", or an empty text for no label.

    A name may hold "+": a name as a whole comes before several, and a longer one before a shorter one. Raises
    `UserError` naming an unknown label and similar ones.
    """
    if not isinstance(text, str):
        raise UserError(f"label {text!r}: expected a text, such as 'cat' or 'cat+night'")
    numbers = {name: number for number, name in enumerate(names)}
    parts = [] if text == "" and text not in numbers else _split(text, numbers)
    if parts is None:
        unknown = next((part for part in text.split(JOIN) if part not in numbers), text)
        near = difflib.get_close_matches(unknown, names, n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        known = listed(names) or "none: train its base stage with 'use_labels', on images whose labels differ"
        raise UserError(f"label {unknown!r}: this model does not know it{hint}; labels that it knows: {known}")
    return tuple(sorted({numbers[part] for part in parts}))


def _split(text: str, names: Collection[str]) -> list[str] | None:
    cuts = [-1, *(place for place, letter in enumerate(text) if letter == JOIN), len(text)]
    behind: dict[int, list[str]] = {len(text): []}  # the names after a cut
    for number, start in reversed(list(enumerate(cuts[:-1]))):
        for end in reversed(cuts[number + 1 :]):
            if end in behind and text[start + 1 : end] in names:
                behind[start] = [text[start + 1 : end], *behind[end]]
                break
    return behind.get(-1)


def label_text(labels: LabelSet, names: Sequence[str]) -> str:
    """The text that asks for a label set, so that `parse_labels` gives it back where names with "+" allow that."""
    texts = [JOIN.join(names[number] for number in order) for order in (labels, labels[::-1])]
    return next((text for text in texts if parse_labels(text, names) == labels), texts[0])


def count_sets(given: torch.Tensor, most: int) -> torch.Tensor:
    """Condition and label set of training images (N, 1 + L) → the distinct ones, each after its number: (M, 2 + L).

    If there are more than `most`, those of so many images, drawn at random.
    """
    rows, counts = given.unique(dim=0, return_counts=True)
    if len(rows) > most:
        chosen = np.random.default_rng(0).choice(len(given), most, replace=False)
        rows, counts = given[torch.from_numpy(chosen)].unique(dim=0, return_counts=True)
    return torch.cat((counts[:, None], rows), dim=1)


class LabelSets:
    """The label sets of training images, each with a condition and the number of images that have both.

    `table` (M, 2 + L) is that of `count_sets`; rows of number 0 do not count. Raises `ValueError` if nothing was
    counted, or if the table is not one of these names and conditions.
    """

    def __init__(self, table: torch.Tensor, names: Sequence[str], num_conditions: int) -> None:
        table = table[table[:, 0] > 0].cpu()
        self.names, self.num_conditions = names, num_conditions
        self.counts, self.conditions, self.sets = table[:, 0].double(), table[:, 1], table[:, 2:]
        limits = ((self.conditions, num_conditions - 1), (self.sets, len(names)))
        if len(table) == 0 or any(((part < 0) | (part > last)).any() for part, last in limits):
            raise ValueError("its label sets were never counted, or are damaged")
        self.usage = lru_cache(self.usage)  # all pictures of a request may ask for the same labels

    @property
    def shares(self) -> dict[str, float]:
        weights = self.counts[:, None].expand(self.sets.shape).flatten()
        counts = self.sets.flatten().bincount(weights, minlength=len(self.names) + 1)[:-1] / self.counts.sum()
        return {self.names[number]: float(counts[number]) for number in counts.argsort(descending=True, stable=True)}

    def usage(self, labels: LabelSet | None = None) -> torch.Tensor:
        """How many images have each condition, (K,): of all images, or of those with exactly these labels.

        If there are none, of those that have all of the labels, or else most of them, and others.
        """
        counts = self.counts
        if labels is not None:
            shared = torch.isin(self.sets, torch.tensor(labels, dtype=torch.int64)).sum(1)
            counts = counts * (shared == shared.max())
            exact = counts * (shared == (self.sets < len(self.names)).sum(1))
            counts = exact if exact.any() else counts
        return self.conditions.bincount(counts, minlength=self.num_conditions)

    def draw(self, condition: int, generator: torch.Generator) -> LabelSet:
        """The label set of a training image of this condition, or of any if none has it."""
        counts = self.counts * (self.conditions == condition)
        row = torch.multinomial(counts if counts.any() else self.counts, 1, generator=generator)
        return tuple(number for number in self.sets[row].flatten().tolist() if number < len(self.names))
