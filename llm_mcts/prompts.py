"""The one place where prompts and steps get their written form; policy, critics and trainers all use it.

A state is written as segments: the question in its prompt, then one segment a step (the line and its newline). Each
segment is tokenised by itself, so the tokens of a state are always a prefix of the tokens of every state after it: that
is what lets a cache be shared along the tree, and a critic score the very tokens it was trained on.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, Literal

from llm_mcts.errors import ConfigError
from llm_mcts.fields import Settings, Within
from llm_mcts.tasks.answers import extract_answer
from llm_mcts.types import State, Step

Style = Literal["plain", "few_shot", "chat"]

SYSTEM = (
    "Solve the math problem step by step. Write one short step per line. "
    "End with a last line of the form '#### N' where N is the final number alone."
)

RATIONALE = "Let's verify step by step."

# Worked examples of the few-shot style, written for this project.
EXAMPLES = [
    (
        "A baker makes 3 trays of 12 rolls and sells 20 of them. How many rolls are left?",
        "The baker makes 3 * 12 = 36 rolls.\nAfter the sale 36 - 20 = 16 rolls are left.\n#### 16",
    ),
    (
        "Lena reads 15 pages a day for 6 days. Her book has 140 pages. How many pages are left to read?",
        "In 6 days she reads 15 * 6 = 90 pages.\nThere are 140 - 90 = 50 pages left.\n#### 50",
    ),
    (
        "A shirt costs $24 and a hat costs half as much. How much do 2 shirts and 3 hats cost?",
        "A hat costs 24 / 2 = 12 dollars.\nTwo shirts cost 2 * 24 = 48 dollars.\n"
        "Three hats cost 3 * 12 = 36 dollars.\nTogether they cost 48 + 36 = 84 dollars.\n#### 84",
    ),
    (
        "Tom has 5 more marbles than Ann, and Ann has twice as many as Joe. Joe has 7. How many does Tom have?",
        "Ann has 2 * 7 = 14 marbles.\nTom has 14 + 5 = 19 marbles.\n#### 19",
    ),
]

Rewriting = Literal["rephrase", "evolve"]
"""rephrase: the same problem in other words (MetaMath); evolve: a harder one (Evol-Instruct, WizardMath)."""

# What is asked, what the reply is called, and a worked example, all but the idea written for this project.
REWRITINGS: dict[Rewriting, tuple[str, str, tuple[tuple[str, str], ...]]] = {
    "rephrase": (
        "Say the math problem in other words. Keep all its numbers and what it asks for. "
        "Reply with the new problem alone, in one paragraph, without its solution.",
        "In other words",
        (
            (
                EXAMPLES[0][0],
                "Out of 3 trays with 12 rolls on each, a baker sells 20 rolls. How many rolls does the baker still have?",
            ),
            (
                EXAMPLES[1][0],
                "Lena's book has 140 pages. If she reads 15 of them every day, how many has she not read after 6 days?",
            ),
        ),
    ),
    "evolve": (
        "Make the math problem harder: add one condition, so that its solution takes one or two steps more. It has to state "
        "all that is needed and to have one number as its answer. "
        "Reply with the new problem alone, in one paragraph, without its solution.",
        "Harder problem",
        (
            (
                EXAMPLES[0][0],
                "A baker makes 3 trays of 12 rolls, burns 4 of them and sells 20. "
                "He packs the rest in bags of 6. How many bags does he fill?",
            ),
            (
                EXAMPLES[3][0],
                "Tom has 5 more marbles than Ann, and Ann has twice as many as Joe. "
                "Joe has 7 and gives 3 of them to Tom. How many does Tom have now?",
            ),
        ),
    ),
}


@dataclass(frozen=True)
class PromptConfig(Settings, section="prompt"):
    """How questions are put to a model."""

    style: Style = "plain"
    """plain: `Question: … Answer:` (base and fine-tuned models); few_shot: worked examples in front of it (base models);
    chat: the tokenizer's chat template (instruction-tuned models)."""
    shots: Annotated[int, Within(0, len(EXAMPLES))] = 4
    """Worked examples shown in the few_shot and chat styles."""
    system: str = SYSTEM
    """The system message of the chat style."""
    answer_markers: tuple[str, ...] = ("####", "\\boxed{", "The answer is", "The final answer is")
    """A line that holds one of these ends the solution."""


class PromptFormat:
    """Writes states as text segments and reads steps back."""

    def __init__(self, config: PromptConfig, chat_template: Callable[[list[dict[str, str]]], str] | None = None) -> None:
        """`chat_template` renders messages up to where the assistant's turn begins; only the chat style needs it."""
        if config.style == "chat" and chat_template is None:
            raise ConfigError("prompt.style is 'chat' but the tokenizer has no chat template; use plain or few_shot")
        self.config = config
        self._chat_template = chat_template

    def question(self, question: str) -> str:
        """The text in front of the first step."""
        examples = EXAMPLES[: self.config.shots]
        if self.config.style == "chat":
            assert self._chat_template is not None
            messages = [{"role": "system", "content": self.config.system}]
            for asked, solved in examples:
                messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": solved}]
            return self._chat_template([*messages, {"role": "user", "content": question}])
        shown = [f"Question: {asked}\nAnswer:\n{solved}\n\n" for asked, solved in examples]
        prefix = "".join(shown) if self.config.style == "few_shot" else ""
        return f"{prefix}Question: {question}\nAnswer:\n"

    @staticmethod
    def step(text: str) -> str:
        """A step as it stands in the solution: its line with the newline that ends it."""
        return f"{text}\n"

    def segments(self, state: State) -> tuple[str, ...]:
        """The state as text segments: the question's prompt, then one a step."""
        return (self.question(state.question), *(self.step(s.text) for s in state.steps))

    def same_step(self, state: State, a: str, b: str) -> tuple[str, ...]:
        """The question whether two next steps say the same (AlphaLLM's state merge by a model); "yes" or "no" answers it."""
        asked = "\n".join(
            [
                "Here is the beginning of a solution, and two ways to go on.",
                f"Problem: {state.question}",
                f"Solution so far: {state.text or '(nothing yet)'}",
                f"First way: {a}",
                f"Second way: {b}",
                "Do both ways say the same, in other words? Reply yes or no.",
            ]
        )
        if self.config.style == "chat":
            assert self._chat_template is not None
            return (self._chat_template([{"role": "user", "content": asked}]),)
        return (f"{asked}\nReply:",)

    def verification(self, state: State, asked: str, rationale: bool = False) -> tuple[str, ...]:
        """The question `asked` about a solution, up to where the reply begins: its rationale, or the verdict itself.

        In the plain and few_shot styles it stands behind the solution, whose tokens are then the policy's own; a chat
        puts question and solution into one message.
        """
        if self.config.style == "chat":
            assert self._chat_template is not None
            how = f"{RATIONALE} End with the line '{asked}' and your verdict." if rationale else asked
            message = f"Problem: {state.question}\n\nSolution:\n{state.text or '(nothing yet)'}\n\n{how}"
            return (self._chat_template([{"role": "user", "content": message}]),)
        return (*self.segments(state), f"{RATIONALE}\n" if rationale else asked)

    def rewriting(self, question: str, how: Rewriting) -> tuple[str, ...]:
        """A call for a new problem made from a question, up to where it begins."""
        asked, label, examples = REWRITINGS[how]
        if self.config.style == "chat":
            assert self._chat_template is not None
            return (self._chat_template([{"role": "user", "content": f"{asked}\n\nProblem: {question}"}]),)
        shown = "".join(f"Problem: {old}\n{label}: {new}\n\n" for old, new in examples)
        return (f"{asked}\n\n{shown}Problem: {question}\n{label}:",)

    def critique(self, state: State, reference: str, asked: str) -> tuple[str, ...]:
        """A call for a rationale about a solution with a right one in view (GenRM's reference-guided critiques)."""
        text = (
            f"Problem: {state.question}\n\nReference solution:\n{reference}\n\nSolution to be judged:\n{state.text}\n\n"
            "Check the solution line by line, without a word about the reference solution. "
            f"End with the line '{asked}' and your verdict."
        )
        if self.config.style == "chat":
            assert self._chat_template is not None
            return (self._chat_template([{"role": "user", "content": text}]),)
        return (f"{text}\n\n{RATIONALE}\n",)

    def states_answer(self, line: str) -> bool:
        """Whether the line ends the solution."""
        lowered = line.lower()
        return any(marker.lower() in lowered for marker in self.config.answer_markers)

    def read_step(self, text: str, logprob: float, num_tokens: int, ended: bool) -> Step:
        """Make a step of a generated line; `ended` tells that the model ended the text there."""
        line = text.strip()
        terminal = ended or self.states_answer(line)
        return Step(line, logprob, max(num_tokens, 1), terminal, extract_answer(line) if terminal else None)

    def parse_solution(self, text: str) -> tuple[Step, ...]:
        """A written solution as steps, one a non-empty line, the last one terminal; lines after the answer are dropped."""
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        steps: list[Step] = []
        for i, line in enumerate(lines):
            steps.append(self.read_step(line, 0.0, 1, ended=i == len(lines) - 1))
            if steps[-1].terminal:
                break
        return tuple(steps)


_ASKS = re.compile(
    r"(?:how|what|which|when|find|calculate|determine|compute|work out|give|state|express|estimate|solve)\b", re.IGNORECASE
)
_SAYS_MORE = re.compile(
    r"####|\\\\boxed|\b(?:answer|solution|explanation|note|step 1)\s*:|^(?:sure|certainly|of course|here)\b", re.IGNORECASE
)


def read_question(text: str, longest: int = 1000) -> str | None:
    """The problem that a model wrote when asked for one, or None where the text is anything but one problem.

    It has to be one paragraph of at most `longest` characters that ends in a question, or in a sentence that begins with
    "Find" or the like; talk before it or a solution behind it make it no problem.
    """
    question = text.strip()
    for label in ("Problem:", "New problem:", "Question:", *(f"{label}:" for _, label, _ in REWRITINGS.values())):
        question = question.removeprefix(label).lstrip()
    if not question or len(question) > longest or "\n" in question or _SAYS_MORE.search(question):
        return None
    last = re.split(r"(?<=[.!?])\s+", question)[-1]
    return question if last.endswith("?") or (last.endswith(".") and _ASKS.match(last)) else None


class Encoder:
    """Turns segments into token ids, each by itself; the same object serves engines, critics and trainers."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        bos = getattr(tokenizer, "bos_token_id", None)
        self._bos = [bos] if bos is not None and tokenizer("a").input_ids[:1] == [bos] else []

    def __call__(self, segments: Sequence[str]) -> list[int]:
        """Token ids of all segments in a row, behind the tokenizer's begin-of-text token where it uses one."""
        ids = [token for segment in segments for token in self._segment(segment)]
        return ids if ids[:1] == self._bos else [*self._bos, *ids]

    def ends(self, segments: Sequence[str]) -> list[int]:
        """For each segment, the index of its last token in `self(segments)`."""
        total = list(accumulate(len(self._segment(segment)) for segment in segments))
        offset = len(self(segments)) - total[-1]
        return [n + offset - 1 for n in total]

    def _segment(self, segment: str) -> list[int]:
        if segment not in self._known:
            if len(self._known) >= 100_000:
                self._known.clear()
            self._known[segment] = self.tokenizer(segment, add_special_tokens=False).input_ids
        return self._known[segment]


def chat_template_of(tokenizer: Any) -> Callable[[list[dict[str, str]]], str] | None:
    """The tokenizer's chat template as a function of messages, up to the assistant's turn; None where it has none."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    return lambda messages: tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
