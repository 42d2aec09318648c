"""The stages of a self-improvement round, in the order of their work. A run may leave some out."""

from typing import Literal

StageName = Literal[
    "imagine", "questions", "search", "rows", "value", "prm", "orm", "policy", "evaluate", "gate", "test", "stop"
]
"""What a line of a round's metrics.jsonl may be about; "stop" says that the run ends early, and why."""
CRITIC_STAGES: tuple[StageName, ...] = ("value", "prm", "orm")
TRAINING_STAGES: tuple[StageName, ...] = ("policy", *CRITIC_STAGES)
ROUND_STAGES: tuple[StageName, ...] = ("imagine", "questions", "search", "rows", *CRITIC_STAGES, "policy", "evaluate", "gate")
"""A round's stages. Round 0, the start, is evaluated alone; "test" comes once, after the last round."""
STAGES: tuple[StageName, ...] = (*ROUND_STAGES, "test", "stop")
