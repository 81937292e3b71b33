"""How likely a site attends to a token, by all that needs no diff: the site, the token, and where it stands.

A fair question sets a token that is attended to against one that is ignored, so that this propensity does not tell
which is which. `Propensity` learns it from the training rows and says how often a pair may be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from diff_oracle.tasks.attention_label import Reading
from diff_oracle.tasks.usual import look_up

RIDGE = 0.5  # what a category's own cases must outweigh
STEPS = 15
MOST_CODES = 1 << 32  # above every token and place, so that a site and one of them fit into one code


@dataclass(frozen=True)
class Effect:
    """What each category of one kind adds to the log-odds; one that no case had adds nothing."""

    codes: Int[np.ndarray, "category"]
    """In ascending order."""
    log_odds: Float[np.ndarray, "category"]

    def __call__(self, wanted: Int[np.ndarray, "wanted"]) -> Float[np.ndarray, "wanted"]:
        """The effects of the categories with these codes."""
        return look_up(self.codes, self.log_odds, wanted, 0.0)


def fit_effects(kinds: Sequence[Int[np.ndarray, "case"]], outcomes: Bool[np.ndarray, "case"]) -> list[Effect]:
    """Logistic regression with a ridge penalty, of cases that have one category of every kind.

    Newton's steps, one kind after another: categories of one kind share no case, so that each has its own slope and
    curvature. No step is longer than 1, for where all chances are near 0 or 1 it would overshoot.
    """
    coded = [np.unique(codes, return_inverse=True) for codes in kinds]
    effects = [np.zeros(len(codes)) for codes, _ in coded]
    yes = outcomes.sum()
    log_odds = np.full(len(outcomes), np.log((yes + 1) / (len(outcomes) - yes + 1)))
    for _ in range(STEPS):
        for (_, category), effect in zip(coded, effects, strict=True):
            chance = 1 / (1 + np.exp(-log_odds))
            slope = np.bincount(category, outcomes - chance) - RIDGE * effect
            curvature = np.bincount(category, chance * (1 - chance)) + RIDGE
            step = np.clip(slope / curvature, -1, 1)
            effect += step
            log_odds += step[category]
    return [Effect(codes, effect) for (codes, _), effect in zip(coded, effects, strict=True)]


@dataclass(frozen=True)
class Propensity:
    """Log-odds that a site attends to a token and does not ignore it.

    They add up over the token, its place, and either of them at this site; a site that no training row has goes by the
    first two.
    """

    sites: dict[str, int]
    effects: tuple[Effect, ...]

    @classmethod
    def fit(cls, sites: Sequence[str], readings: Sequence[Reading]) -> Propensity:
        """Learns from rows, each with its site."""
        numbers = {site: number for number, site in enumerate(dict.fromkeys(sites))}
        rows = [_kinds(numbers[site], reading) for site, reading in zip(sites, readings, strict=True)]
        outcomes = [np.arange(len(reading.tokens)) < len(reading.attended) for reading in readings]
        effects = fit_effects([np.concatenate(codes) for codes in zip(*rows, strict=True)], np.concatenate(outcomes))
        return cls(numbers, tuple(effects))

    def pair_weights(self, site: str, reading: Reading) -> Float[np.ndarray, "attended ignored"]:
        """How often each pair of a row may be asked."""
        kinds = _kinds(self.sites.get(site, -1), reading)
        log_odds = np.sum([effect(codes) for effect, codes in zip(self.effects, kinds, strict=True)], axis=0)
        return matching_weights(log_odds[: len(reading.attended)], log_odds[len(reading.attended) :])


def _kinds(site: int, reading: Reading) -> list[Int[np.ndarray, "token"]]:
    """The categories of a reading's tokens. Distances come in steps that widen; thrice in a context counts as often."""
    steps = (2 * np.log2(1.0 + reading.distances)).astype(np.int64)
    own = reading.tokens, 3 * steps + np.minimum(reading.times, 3)
    return [*own, *(site * MOST_CODES + codes for codes in own)]


def matching_weights(
    right: Float[np.ndarray, "right"], wrong: Float[np.ndarray, "wrong"]
) -> Float[np.ndarray, "right wrong"]:
    """How often each pair may be asked, from 0 to 1, so that the log-odds of its tokens do not tell which is right.

    Of two tokens with log-odds u and v, one of them right, it is the first with odds exp(u − v). Asked in a share
    min(1, exp(v − u)) of these cases and min(1, exp(u − v)) of the others, either is right as often (the matching
    weights of Li and Greene, 2013).
    """
    return np.exp(np.minimum(0.0, wrong[None, :] - right[:, None]))
