"""The gate's arithmetic by hand, its rules, and what it makes of a poisoned round."""

import math

import pytest

from llm_mcts.config import load_config
from llm_mcts.errors import ConfigError, DataError
from llm_mcts.runner import Record
from llm_mcts.stats import at_least, mcnemar
from trainers.loop.gate import GateConfig, GateDecision, decide, should_stop


def records(marks: str) -> list[Record]:
    """One record a mark: "+" right, "-" wrong."""
    return [Record(str(i), "1", mark == "+") for i, mark in enumerate(marks)]


def changed(gained: int, lost: int, n: int) -> tuple[str, str]:
    """Marks before and after, with so many questions gained and lost, the others right on both sides."""
    return "-" * gained + "+" * lost + "+" * (n - gained - lost), "+" * gained + "-" * lost + "+" * (n - gained - lost)


def verdict(pairs: dict[str, tuple[str, str]], **settings: object) -> GateDecision:
    before = {label: records(a) for label, (a, _) in pairs.items()}
    after = {label: records(b) for label, (_, b) in pairs.items()}
    return decide(before, after, load_config(GateConfig, overrides=settings))


@pytest.mark.parametrize(
    ("gained", "lost", "p_value"),
    [
        (8, 2, 0.109375),  # 2 * (C(10,0) + C(10,1) + C(10,2)) / 2^10 = 2 * (1 + 10 + 45) / 1024
        (2, 8, 0.109375),
        (5, 0, 0.0625),  # 2 / 2^5
        (6, 0, 0.03125),  # 2 / 2^6
        (3, 3, 1.0),  # 2 * (1 + 6 + 15 + 20) / 64 > 1
        (0, 0, 1.0),
        (1, 0, 1.0),  # 2 * 1/2
    ],
)
def test_mcnemar_by_hand(gained: int, lost: int, p_value: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(p_value, abs=1e-12)


def test_mcnemar_as_published() -> None:
    # Agresti, Categorical Data Analysis, table 10.1 (approval of the prime minister): 86 and 150 discordant pairs, z = -4.17
    # (z^2 = 64^2 / 236 = 17.36), two-sided P < 0.0001. The exact P lies near the normal one of |z| corrected by one:
    # (64 - 1) / sqrt(236) = 4.101, 2 * (1 - Phi) = 4.1e-5.
    corrected = math.erfc((150 - 86 - 1) / math.sqrt(236) / math.sqrt(2))
    assert corrected == pytest.approx(4.1e-5, rel=0.02)
    assert mcnemar(86, 150) == pytest.approx(corrected, rel=0.1)  # the normal tail against the exact one


def test_one_sided_tail_by_hand() -> None:
    assert at_least(8, 10) == pytest.approx((45 + 10 + 1) / 1024, abs=1e-12)
    assert at_least(0, 10) == 1.0


def test_a_verdict_holds_what_was_counted() -> None:
    found = verdict({"greedy": changed(8, 2, 50)})
    change = found.to_dict()["changes"]["greedy"]
    assert (change["gained"], change["lost"], change["n"], change["difference"]) == (8, 2, 50, 0.12)
    assert change["p_value"] == pytest.approx(0.109375)
    assert change["low"] < 0.12 < change["high"]
    assert GateDecision.from_dict({"stage": "gate", "seconds": 1.0, **found.to_dict()}) == found


# name -> (settings, what each method gained and lost of 100, accepted, a word of the reason)
RULES: dict[str, tuple[dict[str, object], dict[str, tuple[int, int]], bool, str]] = {
    "the same": ({}, {"greedy": (0, 0), "mcts": (3, 3)}, True, "not worse"),
    "within the tolerance, the mean unchanged": ({}, {"greedy": (2, 4), "mcts": (5, 3)}, True, "not worse"),
    "within the tolerance, the mean lower": ({}, {"greedy": (2, 4), "mcts": (4, 3)}, False, "the mean fell"),
    "beyond the tolerance, the mean higher": ({}, {"greedy": (4, 7), "mcts": (30, 0)}, False, "greedy fell by more than 2"),
    # 5 lost, none gained: one-sided 1/32 = 0.031; 4 lost: 1/16 = 0.0625
    "a significant fall within a wide tolerance": (
        {"tolerance": 1},
        {"greedy": (0, 5), "mcts": (9, 0)},
        False,
        "significantly",
    ),
    "a fall that chance explains": ({"tolerance": 1}, {"greedy": (0, 4), "mcts": (9, 0)}, True, "not worse"),
    "better: one gains, one the same": ({"rule": "better"}, {"greedy": (5, 0), "mcts": (1, 1)}, True, "greedy gained"),
    "better: a gain that chance explains": ({"rule": "better"}, {"greedy": (4, 0), "mcts": (4, 0)}, False, "no method gained"),
    "better: one gains, one falls": ({"rule": "better"}, {"greedy": (20, 0), "mcts": (0, 5)}, False, "mcts fell"),
    "better: stricter alpha": ({"rule": "better", "alpha": 0.01}, {"greedy": (5, 0)}, False, "no method"),
    "always": ({"rule": "always"}, {"greedy": (0, 50)}, True, "every round"),
}


@pytest.mark.parametrize("name", RULES)
def test_rules(name: str) -> None:
    settings, counts, accepted, reason = RULES[name]
    found = verdict({label: changed(gained, lost, 100) for label, (gained, lost) in counts.items()}, **settings)
    assert found.accepted is accepted
    assert reason in found.reason


@pytest.mark.parametrize("settings", [{}, {"rule": "better"}, {"tolerance": 1}])
def test_a_poisoned_round_is_rejected(settings: dict[str, object]) -> None:
    # half of what was right is wrong afterwards
    found = verdict(
        {"greedy": ("+" * 60 + "-" * 40, "+" * 30 + "-" * 70), "mcts": ("+" * 80 + "-" * 20, "+" * 50 + "-" * 50)}, **settings
    )
    assert not found.accepted
    assert "fell significantly" in found.reason


def test_a_failed_question_counts_as_wrong() -> None:
    before = {"greedy": records("+" * 10)}
    after = {"greedy": [Record(str(i), error="timeout") for i in range(10)]}
    assert not decide(before, after).accepted


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ({"greedy": "++"}, {"mcts": "++"}, "methods"),
        ({}, {}, "at least one"),
        ({"greedy": ""}, {"greedy": ""}, "no held-out question"),
        ({"greedy": "++"}, {"greedy": "+++"}, "different questions"),
    ],
)
def test_what_cannot_be_compared_is_refused(before: dict[str, str], after: dict[str, str], named: str) -> None:
    with pytest.raises(DataError, match=named):
        decide({k: records(v) for k, v in before.items()}, {k: records(v) for k, v in after.items()})


def rounds(*gains: int, n: int = 100) -> list[GateDecision]:
    """Verdicts on rounds that gained so many of n questions; a loss is rejected."""
    return [verdict({"greedy": changed(max(0, g), max(0, -g), n)}) for g in gains]


@pytest.mark.parametrize(
    ("gains", "patience", "stops"),
    [
        ((5, -5, -5), 2, True),
        ((-5, -5, 5), 2, False),
        ((5, 0, -5), 2, True),
        ((5, 0), 2, False),
        ((-5,), 2, False),
        ((0, 0, 0, 0), 0, False),  # 0: never
        ((5, 1), 1, False),  # a gain of 1 point is above min_gain
        ((5, 0), 1, True),
    ],
)
def test_early_stop(gains: tuple[int, ...], patience: int, stops: bool) -> None:
    reason = should_stop(rounds(*gains), GateConfig(patience=patience))
    assert (reason is not None) is stops
    assert reason is None or f"{patience} rounds in a row gained less than 0.5 points" in reason


@pytest.mark.parametrize(
    "settings",
    [{"rule": "bettr"}, {"alpha": 0}, {"alpha": 0.6}, {"tolerance": -0.1}, {"min_gain": 2}, {"patience": -1}],
)
def test_unusable_settings_are_named(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        GateConfig(**settings)  # type: ignore[arg-type]
