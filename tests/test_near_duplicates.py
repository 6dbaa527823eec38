"""Near-duplicates: the same pairs as a comparison of all with all, in bounded groups that no order changes."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts import near_duplicates
from scripts.near_duplicates import KEPT, MOST_BITS, MOST_IN_GROUP, count_straddling, join, near_pairs
from utils.data.split import TEST, TRAINING, VALIDATION


def random_hashes(rng, number):
    return rng.integers(0, 2**64, number, dtype=np.uint64)


def planted(seed, number, copies, most_bits):
    """Random hashes, shuffled with copies of some of them in which up to `most_bits` bits are flipped."""
    rng = np.random.default_rng(seed)
    hashes = random_hashes(rng, number)
    sources = rng.choice(hashes, copies)
    for index in range(copies):
        for bit in rng.choice(64, rng.integers(most_bits + 1), replace=False):
            sources[index] ^= np.uint64(1) << np.uint64(bit)
    return rng.permutation(np.concatenate([hashes, sources]))


def distances_of(hashes):
    return np.bitwise_count(hashes[:, None] ^ hashes[None])


def all_pairs(hashes):
    """The pairs that a comparison of all with all finds."""
    first, second = np.nonzero(np.triu(distances_of(hashes) <= MOST_BITS, 1))
    return set(zip(first.tolist(), second.tolist(), strict=True))


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.integers(1, 300), st.integers(0, 100), st.integers(0, 10))
def test_the_pairs_are_those_of_a_comparison_of_all_with_all(seed, number, copies, most_bits):
    hashes = planted(seed, number, min(copies, number), most_bits)
    pairs = near_pairs(hashes)
    assert len(set(map(tuple, pairs.tolist()))) == len(pairs)
    assert set(map(tuple, pairs.tolist())) == all_pairs(hashes)
    distances = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]])
    assert (np.diff(distances.astype(int)) >= 0).all()


def test_many_equal_images_cost_few_pairs_and_make_full_groups():
    number = 10 * MOST_IN_GROUP + 3
    pairs = near_pairs(np.full(number, 12345, np.uint64))
    assert len(pairs) <= number * KEPT
    first, num_refused = join(pairs, number)
    assert sorted(Counter(first.tolist()).values()) == [3] + 10 * [MOST_IN_GROUP]
    assert num_refused > 0
    for few in (0, 1):  # of which there are no pairs
        assert near_pairs(np.zeros(few, np.uint64)).shape == (0, 2)
        assert join(near_pairs(np.zeros(few, np.uint64)), few)[0].tolist() == list(range(few))


def test_the_many_images_of_long_bursts_stay_together():
    """Of 200 images each of which differs from the others of its burst in up to 4 bits, most pairs are not kept."""
    rng = np.random.default_rng(0)
    bursts = np.repeat(np.arange(20), 200)
    hashes = random_hashes(rng, 20)[bursts]
    for _ in range(2):
        hashes ^= np.uint64(1) << rng.integers(0, 64, len(hashes), dtype=np.uint64)
    pairs = near_pairs(hashes)
    assert len(pairs) <= len(hashes) * KEPT
    assert (bursts[pairs[:, 0]] == bursts[pairs[:, 1]]).all()
    sides = np.where(rng.random(len(hashes)) < 0.1, TEST, TRAINING)
    assert count_straddling(pairs, sides) >= 0.99 * (sides == TEST).sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "MOST_IN_GROUP", len(hashes))
        first, num_refused = join(pairs, len(hashes))
    assert (first == bursts * 200).all()
    assert num_refused == 0


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 8))
def test_no_group_is_larger_than_the_cap_and_each_is_connected(seed, number, most):
    rng = np.random.default_rng(seed)
    pairs = np.sort(rng.integers(0, number, (2 * number, 2)), axis=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "MOST_IN_GROUP", most)
        first, num_refused = join(pairs, number)
    assert max(Counter(first.tolist()).values()) <= most
    assert (first <= np.arange(number)).all()
    assert (first[first] == first).all()
    parts = {image: {image} for image in range(number)}
    for one, other in pairs.tolist():
        if first[one] == first[other] and parts[one] is not parts[other]:
            parts[one] |= parts[other]
            parts.update(dict.fromkeys(parts[other], parts[one]))
    assert all(set(np.flatnonzero(first == first[image])) == parts[image] for image in range(number))
    apart = sum(first[one] != first[other] for one, other in pairs.tolist())
    assert num_refused <= apart if apart else num_refused == 0


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.floats(0, 1))
def test_straddling_images_are_those_with_a_partner_on_another_side(seed, share):
    hashes = planted(seed, 60, 40, MOST_BITS)
    rng = np.random.default_rng(seed)
    sides = np.where(rng.random(100) < share, rng.integers(VALIDATION, TRAINING, 100), TRAINING)
    near = distances_of(hashes) <= MOST_BITS
    expected = sum((near[image] & (sides != sides[image])).any() for image in np.flatnonzero(sides != TRAINING))
    assert count_straddling(near_pairs(hashes), sides) == expected
