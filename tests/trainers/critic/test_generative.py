"""Training verifiers: the mixed loss by hand, what counts in a row, rationales, and that it learns."""

import asyncio
import json
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch

from critics import VerifierConfig, load_critic
from critics.model.lora import LoraSpec
from critics.scoring.generative import VERDICTS, GenerativeVerifier
from llm_mcts.cli import main
from llm_mcts.engines.base import Completion, Request
from llm_mcts.engines.transformers.adapters import SharedBackbone
from llm_mcts.engines.transformers.engine import TransformersEngine
from llm_mcts.errors import ConfigError, DataError, ModelError
from llm_mcts.models import load_causal_lm, load_tokenizer
from llm_mcts.prompts import RATIONALE, Encoder, PromptConfig, PromptFormat
from llm_mcts.tasks.equations import evaluate
from llm_mcts.types import State, Step
from trainers.critic.generative import (
    GenRMConfig,
    balanced,
    encode_verdict,
    train_genrm,
    verdict_counts,
    verdict_rows,
    verdict_terms,
)
from trainers.data.rows import SolutionRow, StepRow, VerdictRow
from trainers.fit.fit import TrainCall, TrainConfig
from trainers.labels.rationales import RationalesConfig, arithmetic_rationale, model_rationales

QUESTION = "Ann has 5 apples and buys 3 more. How many?"
RIGHT = VerdictRow("p", QUESTION, ("Ann has 5 + 3 = 8 apples.", "#### 8"), True)
WRONG = VerdictRow("p", QUESTION, ("Ann has 5 + 3 = 9 apples.", "#### 9"), False)
PLAIN = PromptFormat(PromptConfig())


def test_the_mixed_loss_by_hand() -> None:
    # Two words; token t + 1 is predicted at t. p(token 1) is 0.25 at position 0, 0.5 at 1, 0.8 at 2.
    p = torch.tensor([[[0.75, 0.25], [0.5, 0.5], [0.2, 0.8], [0.5, 0.5]]])
    batch = {
        "input_ids": torch.tensor([[0, 1, 1, 1]]),
        "mask": torch.tensor([[False, True, True, True]]),
        "solving": torch.tensor([[True, False, True, True]]),
    }
    verify, solve = verdict_terms(p.log(), batch, 1 / 3)
    # -log 0.25, and 1/3 * (-log 0.5 - log 0.8) / 2
    assert float(verify) == pytest.approx(-log(0.25), abs=1e-6)
    assert float(solve) == pytest.approx((-log(0.5) - log(0.8)) / 2 / 3, abs=1e-6)
    assert [int(n) for n in verdict_counts(batch)] == [1, 2]
    batch["mask"] = torch.tensor([[False, True, False, False]])
    assert [int(n) for n in verdict_counts(batch)] == [1, 0]


@pytest.mark.parametrize("rationale", ["", "5 + 3 = 8.\nEach step follows."])
def test_only_the_reply_counts(tiny_model: Path, rationale: str) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    row = VerdictRow("p", QUESTION, RIGHT.steps, False, rationale)
    encoded = encode_verdict(row, "genrm", PLAIN, Encoder(tokenizer), tokenizer.eos_token_id)
    counted = [token for token, mask in zip(encoded.ids, encoded.mask, strict=True) if mask]
    asked = VERDICTS["genrm"].question
    assert tokenizer.decode(counted[:-1]) == (f"{rationale}\n{asked} No" if rationale else " No")
    assert counted[-1] == tokenizer.eos_token_id
    prompt = tokenizer.decode([token for token, mask in zip(encoded.ids, encoded.mask, strict=True) if not mask])
    assert prompt.endswith(f"#### 8\n{RATIONALE}\n" if rationale else f"#### 8\n{asked}")


def test_a_verifiers_tokens_are_the_trainers(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    encode = Encoder(tokenizer)
    encoded = encode_verdict(RIGHT, "prm", PLAIN, encode, tokenizer.eos_token_id)
    seen: list[list[int]] = []

    class Engine:
        async def logprobs(self, prompt: Any, continuations: Any) -> list[list[float]]:
            seen.append(encode([*prompt, *continuations[0]]))
            return [[-1.0] for _ in continuations]

    critic = GenerativeVerifier(Engine(), PLAIN, "prm")  # type: ignore[arg-type]
    asyncio.run(critic.score([State(QUESTION, tuple(map(Step, RIGHT.steps)))]))
    assert seen[-1] == encoded.ids[:-1]


def test_rows_from_outcomes_and_from_steps() -> None:
    assert verdict_rows([SolutionRow("p", QUESTION, RIGHT.steps, 1.0), SolutionRow("p", QUESTION, WRONG.steps, 0.0)]) == [
        RIGHT,
        WRONG,
    ]
    steps = verdict_rows([StepRow("p", QUESTION, ("a", "b", "c"), (0.5, None, 0.49))], "prm")
    assert [(row.steps, row.right) for row in steps] == [(("a",), True), (("a", "b", "c"), False)]


def test_rows_of_the_wrong_kind_are_refused() -> None:
    """A prefix is no whole solution: its label says nothing of an answer."""
    with pytest.raises(DataError, match=r"a StepRow .* for a verifier of kind 'genrm'; expected SolutionRows"):
        verdict_rows([StepRow("p", QUESTION, ("a",), (1.0,))])
    with pytest.raises(DataError, match=r"a SolutionRow .* for a verifier of kind 'prm'; expected StepRows"):
        verdict_rows([SolutionRow("p", QUESTION, ("a",), 1.0)], "prm")
    with pytest.raises(ConfigError, match="only genrm writes them"):
        GenRMConfig("prm", verifier=VerifierConfig(1))


def test_rows_are_balanced_and_not_repeated() -> None:
    rows = [VerdictRow("p", "q", (str(i % 4),), i < 5) for i in range(8)]
    kept = balanced(rows, 2)
    assert [(row.steps, row.right) for row in kept] == [(("0",), True), (("1",), True), (("1",), False), (("2",), False)]


def test_several_rationales_of_one_solution_are_kept() -> None:
    rows = [VerdictRow("p", "q", ("a",), True, f"r{i % 3}") for i in range(4)] + [VerdictRow("p", "q", ("b",), True, "r")]
    assert [row.rationale for row in balanced(rows, 1)] == ["r0", "r1", "r2"]


def test_rationales_by_arithmetic() -> None:
    assert arithmetic_rationale(RIGHT) == "5 + 3 = 8.\nEach step follows."
    assert arithmetic_rationale(WRONG) == "5 + 3 = 8, not 9."
    longer = VerdictRow("p", "q", ("So 2 * (3 + 4) = 14 and 14 / 4 = 3.5.", "Then 5 - 7 = -2.", "#### -2"), False)
    assert arithmetic_rationale(longer) == "2 * (3 + 4) = 14.\n14 / 4 = 3.5.\n5 - 7 = -2.\nA step does not follow."


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("2 * 1,000 = 2,000 coins", ["2 * 1000 = 2000."]),
        ("1,000 + 500 = 1,500", ["1000 + 500 = 1500."]),
        ("-3 + 5 = 2", ["-3 + 5 = 2."]),
        ("10 / 3 = 3.33 each", ["10 / 3 = 3.33."]),
        ("He has 2 + 3 = 5. Then 5 * 2 = 10.", ["2 + 3 = 5.", "5 * 2 = 10."]),
        ("(2 + 3) * 4 = 20", ["(2 + 3) * 4 = 20."]),
        # parts of longer ones, percentages, other signs, letters: not read
        ("3 * 4 = 12 + 5 = 17", []),
        ("20% * 50 = 10", []),
        ("x - 3 = 4", []),
        ("2x + 3 = 7", []),
        ("3 x 4 = 12", []),
        ("n = 5", []),
        ("9 * " * 900 + "9 = 1", []),
        ("1 + 1 = " + "9" * 5000, []),
    ],
)
def test_which_equations_are_read(line: str, lines: list[str]) -> None:
    row = VerdictRow("p", "q", (line,), True)
    assert arithmetic_rationale(row) == "\n".join([*lines, "Each step follows."])


def test_a_rationale_never_speaks_against_the_label() -> None:
    assert arithmetic_rationale(VerdictRow("p", "q", ("2 + 2 = 5",), True)) is None
    assert arithmetic_rationale(VerdictRow("p", "q", ("10 / 4 = 3",), False)) == "10 / 4 = 2.5, not 3."


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 * (3 + 4)", 14),
        ("7 - 2 - 1", 4),
        ("-3 + 1", -2),
        ("1 / 0", None),
        ("2 ** 9", None),
        ("x + 1", None),
        ("(", None),
        ("1 +", None),
    ],
)
def test_expressions(text: str, value: int | None) -> None:
    assert evaluate(text) == value


class Critic:
    """Writes the critiques it was given, one list a row in order; its verdict is yes where the critique says fine."""

    chat_template = None

    def __init__(self, *replies: list[tuple[str, str]]) -> None:
        self.replies, self.prompts = list(replies), list[str]()

    async def generate(self, request: Request) -> list[Completion]:
        self.prompts.append("".join(request.prompt))
        return [Completion(text, -1.0, 3, reason) for text, reason in self.replies.pop(0)]  # type: ignore[arg-type]

    async def logprobs(self, prompt: Any, continuations: Any) -> list[list[float]]:
        yes = -0.1 if "fine" in "".join(prompt) else -3.0
        return [[yes], [-1.0]]


def test_critiques_by_a_model_are_kept_when_their_verdict_is_the_label() -> None:
    engine = Critic(
        [("fine.", "stop"), ("bad.", "stop"), ("fine", "length")], [("fine.", "stop"), ("bad.", "stop"), ("", "stop")]
    )
    rows = [RIGHT, WRONG, VerdictRow("q", "Another?", ("1",), True)]
    references, config = {QUESTION: "5 + 3 = 8\n#### 8"}, RationalesConfig(per_row=3)
    kept, refused = asyncio.run(model_rationales(rows, references, engine, PLAIN, config))  # type: ignore[arg-type]
    assert [(row.steps, row.right, row.rationale) for row in kept] == [
        (RIGHT.steps, True, "fine."),
        (WRONG.steps, False, "bad."),
    ]
    assert dict(refused) == {"verdict against the label": 2, "no verdict": 2, "no reference solution": 3}
    assert "Reference solution:\n5 + 3 = 8\n#### 8\n" in engine.prompts[0]


@pytest.mark.parametrize("rationales", [0, 1])
def test_it_learns_its_verdicts(tiny_model: Path, tmp_path: Path, rationales: int) -> None:
    rows = [RIGHT, WRONG]
    if rationales:
        rows = [VerdictRow(r.problem, r.question, r.steps, r.right, arithmetic_rationale(r)) for r in rows]
    config = TrainConfig(epochs=150, learning_rate=1e-2, batch_size=4)
    genrm = GenRMConfig(verifier=VerifierConfig(rationales, 0.0, 60))
    metrics = train_genrm(TrainCall(rows, str(tiny_model), tmp_path / "verifier", config, genrm))
    assert metrics["rows"] == 3  # two verdicts, one solution to imitate
    critic = load_critic(tmp_path / "verifier", ("genrm",))
    states = [State(QUESTION, tuple(map(Step, row.steps))) for row in rows]
    right, wrong = asyncio.run(critic.score(states))
    assert right > 0.9
    assert wrong < 0.1
    with pytest.raises(ModelError, match="kind 'genrm'; expected 'value'"):
        load_critic(tmp_path / "verifier", ("value",))


def test_an_adapter_on_a_shared_backbone_judges_as_it_does_alone(tiny_model: Path, tmp_path: Path) -> None:
    config = TrainConfig(epochs=3, learning_rate=1e-1, batch_size=4, lora=LoraSpec(rank=4))
    train_genrm(TrainCall([RIGHT, WRONG], str(tiny_model), tmp_path / "verifier", config))
    assert (tmp_path / "verifier" / "adapter_config.json").exists()
    states = [State(QUESTION, tuple(map(Step, row.steps))) for row in (RIGHT, WRONG)]
    alone = asyncio.run(load_critic(tmp_path / "verifier").score(states))
    shared = SharedBackbone(load_causal_lm(str(tiny_model), torch.float32, torch.device("cpu")), str(tiny_model))
    together = load_critic(tmp_path / "verifier", shared=shared)
    base = GenerativeVerifier(TransformersEngine(model=shared.as_lm(None), tokenizer=load_tokenizer(str(tiny_model))), PLAIN)
    assert asyncio.run(together.score(states)) == pytest.approx(alone, rel=1e-3)
    assert asyncio.run(base.score(states)) != pytest.approx(alone, rel=1e-2)


def test_rows_that_do_not_fit_the_verifier_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no rationale and verifier\.rationales is 4"):
        train_genrm(TrainCall([RIGHT], str(tiny_model), tmp_path / "v", TrainConfig(), GenRMConfig(verifier=VerifierConfig(4))))


def test_from_rows_to_a_verifier_by_the_command_line(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = [{"question": QUESTION, "steps": list(r.steps), "label": float(r.right)} for r in (RIGHT, WRONG)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["rationales", str(rows), "--out", str(tmp_path / "why.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": 2, "refused": {}, "generated_tokens": 0}
    job = ["--start", str(tiny_model), "--genrm.verifier.rationales", "1", "--genrm.verifier.temperature", "0"]
    out = str(tmp_path / "verifier")
    assert main(["train", "genrm", str(rows), "--out", out, *job]) == 2
    assert "llm-mcts rationales writes them" in capsys.readouterr().err
    assert main(["train", "genrm", str(tmp_path / "why.jsonl"), "--out", out, *job, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 3
    assert main(["rationales", str(rows), "--out", str(tmp_path / "why.jsonl")]) == 2
    assert "exists already" in capsys.readouterr().err
