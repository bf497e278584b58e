"""Intervals cover the truth as often as they say, and nothing counted looks certain."""

import math

import numpy as np
import pytest

from kit.intervals import mean_interval, ratio_with_interval, wilson


def test_wilson_by_hand():
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(0, 256) == pytest.approx((0.0, 0.01478), abs=1e-4)
    assert all(math.isnan(bound) for bound in wilson(0, 0))


def test_means_stay_within_the_unit_and_a_slip_does_not_make_them_surer():
    assert mean_interval([1.0] * 10)[1] == pytest.approx(1) and 0.6 < mean_interval([1.0] * 10)[0] < 1
    low, high = mean_interval([0.2, 0.4, 0.6, 0.8] * 10)
    assert low < 0.5 < high and high - low < 0.2
    assert mean_interval([1.0] * 31 + [31 / 32])[0] < mean_interval([1.0] * 32)[0] < 0.9


def test_ratios_over_texts_cover_the_truth():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        out_of = rng.integers(50, 200, 60)
        value, (low, high) = ratio_with_interval(rng.binomial(out_of, 0.7), out_of)
        covered += low <= 0.7 <= high
        assert abs(value - 0.7) < 0.05
    assert covered >= 85


@pytest.mark.parametrize(("right", "low", "high"), [(0, 0.0, 0.0148), (256, 0.9852, 1.0)])
def test_texts_that_are_all_wrong_or_all_right_leave_room_for_doubt(right, low, high):
    hits = (np.arange(256) < right).astype(int)
    for out_of in (np.ones(256, dtype=int), np.full(256, 30)):
        value, interval = ratio_with_interval(hits * out_of, out_of)
        assert value == right / 256 and interval == pytest.approx([low, high], abs=1e-3)
