"""Training a generative verifier: next-token loss on verdicts, mixed with solving.

    L = L_verify + lambda * L_correct                                                        (GenRM, arXiv 2408.15240)

L_verify is the loss on the verdict, and on the rationale in front of it where there is one; L_correct that on right
solutions. The same trainer serves the ORM and the PRM by token probability, whose verdicts are other words.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor

from critics.assemble.loading import VERIFIER_FILE, VerifierFile
from critics.model.model import FORMAT_VERSION
from critics.scoring.generative import VERDICTS, VerdictKind, VerifierConfig
from llm_mcts.errors import ConfigError, DataError
from llm_mcts.fields import AtLeast, Settings
from llm_mcts.prompts import Encoder, PromptFormat
from llm_mcts.types import State, Step
from trainers.data.encoding import Encoded, encode_solution, token_labels
from trainers.data.rows import SolutionRow, StepRow, VerdictRow
from trainers.fit.fit import Metrics, TrainCall, fit
from trainers.fit.language_model import load_policy, token_logits
from trainers.fit.losses import next_token_loss
from trainers.fit.terms import Batch, tokens


@dataclass(frozen=True)
class GenRMConfig(Settings, section="genrm"):
    """What a verifier learns from."""

    kind: VerdictKind = "genrm"
    """genrm: Yes or No about a solution; orm, prm: the words of AlphaLLM's critics."""
    solving_weight: Annotated[float, AtLeast(0)] = 1 / 3
    """lambda: weight of the loss on right solutions; the paper leaves it open."""
    per_problem: Annotated[int, AtLeast(1)] = 16
    """Maximum number of right, and of wrong, solutions per problem. GenRM: 16."""
    verifier: VerifierConfig = field(default_factory=VerifierConfig)
    """How the trained verifier is asked, kept in its checkpoint; with rationales, all rows need one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.verifier.rationales and self.kind != "genrm":
            raise ConfigError(f"{self.verifier.rationales} rationales for kind '{self.kind}'; only genrm writes them")


def verdict_rows(rows: Sequence[SolutionRow | StepRow], kind: VerdictKind = "genrm") -> list[VerdictRow]:
    """For genrm and orm, outcomes as verdicts on whole solutions; for prm, one on each labelled step; right from 0.5 on.

    Raises:
        DataError: labels of steps for a critic of whole solutions, or the other way round.
    """
    found = []
    for row in rows:
        if isinstance(row, StepRow) != (kind == "prm"):
            raise DataError(
                f"a {type(row).__name__} of question {row.question!r} for a verifier of kind '{kind}'; expected "
                f"{'StepRow' if kind == 'prm' else 'SolutionRow'}s"
            )
        if isinstance(row, SolutionRow):
            found.append(VerdictRow(row.problem, row.question, row.steps, row.label >= 0.5))
            continue
        for i, label in enumerate(row.labels):
            if label is not None:
                found.append(VerdictRow(row.problem, row.question, row.steps[: i + 1], label >= 0.5))
    return found


def balanced(rows: Sequence[VerdictRow], per_problem: Annotated[int, AtLeast(1)]) -> list[VerdictRow]:
    """At most `per_problem` right and as many wrong solutions of each problem, the first of each, with all their rationales."""
    kept: dict[tuple[str, bool], dict[tuple[str, ...], dict[str, VerdictRow]]] = defaultdict(dict)
    for row in rows:
        group = kept[row.question, row.right]
        if row.steps in group or len(group) < per_problem:
            group.setdefault(row.steps, {}).setdefault(row.rationale, row)
    return [row for group in kept.values() for same in group.values() for row in same.values()]


def encode_verdict(row: VerdictRow, kind: VerdictKind, fmt: PromptFormat, encode: Encoder, eos: int) -> Encoded:
    """What the verifier is asked and the reply that counts: rationale, question and verdict, then the end of the text."""
    verdict = VERDICTS[kind]
    state = State(row.question, tuple(Step(text) for text in row.steps))
    prompt = fmt.verification(state, verdict.question, rationale=bool(row.rationale))
    word = verdict.yes if row.right else verdict.no
    reply = (f"{row.rationale.strip()}\n", verdict.question, word) if row.rationale else (word,)
    ids, start = [*encode((*prompt, *reply)), eos], len(encode(prompt))
    return Encoded(ids, [i >= start for i in range(len(ids))], {"solving": [False] * len(ids)})


def verdict_terms(logits: Tensor, batch: Batch, weight: float) -> tuple[Tensor, Tensor]:
    """L_verify and weight * L_correct of a batch: two means of -log p(token t+1 | tokens <= t), each over its own tokens.

    The mean over no token is not a number; `verdict_counts` says that it has no part in the loss.

    Args:
        logits: [B, T, V].
        weight: lambda, at least 0.
    """
    split = _with_purposes(batch)
    verify, solve = (next_token_loss(logits, token_labels(split, purpose)) for purpose in ("verify", "solve"))
    return verify, weight * solve


def verdict_counts(batch: Batch) -> tuple[Tensor, Tensor]:
    """The tokens of verdicts and rationales, and those of right solutions."""
    split = _with_purposes(batch)
    return tokens(split, "verify"), tokens(split, "solve")


def _with_purposes(batch: Batch) -> Batch:
    """The batch with its mask in two: what is there to verify, and what to solve."""
    solving = batch["solving"]
    return {**batch, "verify": batch["mask"] & ~solving, "solve": batch["mask"] & solving}


def train_genrm(call: TrainCall) -> Metrics:
    """Train a language model on verdicts and on solving, and write the verifier's checkpoint to `out`.

    Raises:
        DataError: rows with rationales for a verifier without, or the other way round.
    """
    genrm = call.settings or GenRMConfig()
    if odd := [row for row in call.rows if bool(row.rationale) != bool(genrm.verifier.rationales)]:
        raise DataError(
            f"a row of question {odd[0].question!r} has {'a' if odd[0].rationale else 'no'} rationale and "
            f"verifier.rationales is {genrm.verifier.rationales}; expected rationales in all rows "
            "(llm-mcts rationales writes them) and above 0, or in none and 0"
        )
    rows = balanced(call.rows, genrm.per_problem)
    lm = load_policy(call.start, call.config, call.prompt, call.seed)
    encoded = [encode_verdict(row, genrm.kind, lm.fmt, lm.encode, lm.eos) for row in rows]
    if genrm.solving_weight > 0:
        solved = dict.fromkeys((row.problem, row.question, row.steps) for row in rows if row.right and genrm.kind != "prm")
        solutions = [encode_solution(SolutionRow(*solution), lm.fmt, lm.encode, lm.eos) for solution in solved]
        encoded += [solution.with_columns(solving=[True] * len(solution.ids)) for solution in solutions]

    def batch_loss(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        return verdict_terms(token_logits(model, batch), batch, genrm.solving_weight)

    metrics = fit(lm.model, encoded, batch_loss, lm.fitting(call.config), call.seed, verdict_counts, call.logs)
    about = VerifierFile(genrm.kind, call.start, asdict(lm.fmt.config), asdict(genrm.verifier), FORMAT_VERSION)
    lm.save(call.out, merge=False, also=lambda folder: _describe(about, folder))
    return metrics


def _describe(about: VerifierFile, folder: Path) -> None:
    (folder / VERIFIER_FILE).write_text(json.dumps(asdict(about), indent=2) + "\n")
