"""Near-duplicates: the same pairs as a comparison of all with all, in bounded groups that no order changes."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from scripts.near_duplicates import (
    KEPT,
    MOST_BITS,
    MOST_IN_GROUP,
    count_straddling,
    hash_image,
    is_template,
    join,
    near_duplicates,
    near_pairs,
)
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
    first, num_refused = join(pairs, len(hashes), len(hashes))
    assert (first == bursts * 200).all()
    assert num_refused == 0


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 8))
def test_no_group_is_larger_than_the_cap_and_each_is_connected(seed, number, most):
    rng = np.random.default_rng(seed)
    pairs = np.sort(rng.integers(0, number, (2 * number, 2)), axis=1)
    first, num_refused = join(pairs, number, most)
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


def draw(seed, *, is_template):
    """A drawing: circles at random places, or at those of a template, in other colours as bright as its own."""
    rng = np.random.default_rng(seed)
    fixed = np.random.default_rng(0) if is_template else rng
    image = Image.new("RGB", (128, 128), "white")
    for _ in range(12):
        (x, y), size, bright = fixed.integers(20, 108, 2).tolist(), int(fixed.integers(8, 24)), fixed.integers(60, 200)
        colour = rng.dirichlet((1, 1, 1)) * 3 * bright
        place = (x - size, y - size, x + size, y + size)
        ImageDraw.Draw(image).ellipse(place, fill=tuple(colour.clip(0, 255).astype(int).tolist()))
    return image


def write_all(images, folder):
    """The hashes and the paths of images that are written to a folder."""
    paths = [folder / f"{number:03d}.jpg" for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path, quality=90)
    return np.array([int(hash_image(image), 16) for image in images], np.uint64), paths


def test_copies_of_drawings_of_one_template_are_found_and_no_other_pairs(tmp_path):
    pytest.importorskip("imagehash")
    images = [draw(seed, is_template=True) for seed in range(200)]
    for seed in range(10):
        small = images[seed].resize((64, 64)).resize((128, 128))
        darker, mirrored = ImageEnhance.Brightness(images[seed]).enhance(0.7), ImageOps.mirror(images[seed])
        images += [small, darker, mirrored]
    hashes, paths = write_all(images, tmp_path)
    pairs = near_duplicates(hashes, paths)
    first, _ = join(pairs, len(images))
    assert all(first[200 + copy] == first[copy // 3] for copy in range(30))
    assert len(near_pairs(hashes)) > 500  # which the hash takes for copies
    assert len(pairs) < 60  # the 10 images with their 3 copies
    assert not is_template(pairs, len(images))


def test_bursts_are_groups_and_a_chain_through_all_images_is_a_template(tmp_path):
    pytest.importorskip("imagehash")
    images = [draw(seed, is_template=False).crop((at, 0, 120 + at, 128)) for seed in range(20) for at in (0, 1, 2)]
    pairs = near_duplicates(*write_all(images, tmp_path))
    first, _ = join(pairs, len(images))
    assert first.tolist() == [number // 3 * 3 for number in range(60)]
    assert not is_template(pairs, len(images))
    chain = np.stack([np.arange(199), np.arange(1, 200)], axis=1)
    assert is_template(chain, 200) and not is_template(chain[:40], 200)
