"""How published process reward models want a solution written, down to the token at which a step is judged.

A format turns a question and its first k steps into token ids that end at the token whose output judges step k; what the
published code puts behind that token cannot change a causal model's output there. Sources, and how sure each format is:

    math_shepherd  peiyi9979/math-shepherd-mistral-7b-prm, model card (read): sure
    rlhflow        RLHFlow/Llama3.1-8B-PRM-{Mistral,Deepseek}-Data, math-rm/prm_evaluate.py of the authors (read): sure
    qwen           Qwen/Qwen2.5-Math-PRM-7B, model card (read in part; its snippet read in public code that quotes it): sure
    skywork        Skywork/Skywork-o1-Open-PRM-Qwen-2.5-*, the authors' inference code as copied in openreasoner/openr (read):
                   sure of the text, not of the checkpoint's begin-of-text token, which is taken from its tokenizer

None of them was tried on the published weights. With the tokenizer file of Mistral 7B v0.1 the token ids of math_shepherd are
the card's: "+" 648, "-" 387, "ки" 12902.
"""

import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol

from llm_mcts.errors import ModelError, QuestionError

PRMFormat = Literal["math_shepherd", "rlhflow", "qwen", "skywork"]
HeadKind = Literal["plus_minus", "two_classes", "value"]

NEUTRAL = 0.5
"""The score of a question without steps, of which a model that judges solutions knows nothing."""


class StepFormat(Protocol):
    """Writes solutions for one family of reward models."""

    head: HeadKind
    """plus_minus: logits of two tokens of a causal language model; two_classes: `score.*`, an MLP; value: `v_head.summary`."""

    def ids(self, question: str, steps: Sequence[str]) -> list[int]:
        """Tokens up to the one that judges the last of `steps`, of which there is at least one.

        Raises:
            QuestionError: the text holds what the model reads as the end of a step.
        """
        ...


class MathShepherd:
    """`{question} Step 1: {step} ки` and `Step k: {step} ки` on further lines; judged at each `ки` by "+" against "-".

    The model knows steps that begin with "Step k:" only, so those that do not are numbered.
    """

    TAG: ClassVar[str] = "ки"
    head: HeadKind = "plus_minus"

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._reserved = reserved_tokens(tokenizer)
        self._tag = tokenizer(self.TAG, add_special_tokens=False).input_ids[-1]
        # As the card finds them, both from one text: sentencepiece writes both with the blank in front.
        candidates = tokenizer("+ -", add_special_tokens=False).input_ids
        if len(candidates) != 2:
            raise ModelError(f"the tokenizer writes '+ -' as {len(candidates)} tokens; expected 2, as Math-Shepherd's does")
        self.plus, self.minus = candidates

    def ids(self, question: str, steps: Sequence[str]) -> list[int]:
        """See StepFormat."""
        check_plain(self._reserved, question, steps)
        numbered = (s if re.match(r"Step \d+:", s) else f"Step {k}: {s}" for k, s in enumerate(steps, 1))
        solution = "\n".join(f"{step} {self.TAG}" for step in numbered)
        ids: list[int] = self._tokenizer(f"{question} {solution}").input_ids
        return _up_to_last(ids, self._tag, self.TAG, len(steps))


class RLHFlow:
    """A dialogue: each step a user's turn, the first behind the question, and "+" the assistant's answer to all before.

    A step is judged by "+" against "-" where the assistant's answer begins.
    """

    head: HeadKind = "plus_minus"

    def __init__(self, tokenizer: Any) -> None:
        _check_template(tokenizer, "rlhflow")
        self._tokenizer = tokenizer
        self._reserved = reserved_tokens(tokenizer)
        self.plus, self.minus = (tokenizer(sign).input_ids[-1] for sign in "+-")
        asked, answered = [{"role": "user", "content": "1"}], {"role": "assistant", "content": "+"}
        begun, whole = self._render(asked, True), self._render([*asked, answered], False)
        if whole[: len(begun) + 1] != [*begun, self.plus]:
            raise ModelError("the chat template does not put '+' right behind its prompt for an answer; expected Llama 3.1's")

    def ids(self, question: str, steps: Sequence[str]) -> list[int]:
        """See StepFormat."""
        check_plain(self._reserved, question, steps)
        first, *rest = (step.strip() for step in steps)
        messages = [{"role": "user", "content": f"{question} {first}"}]
        for step in rest:
            messages += [{"role": "assistant", "content": "+"}, {"role": "user", "content": step}]
        return self._render(messages, True)

    def _render(self, messages: list[dict[str, str]], prompt: bool) -> list[int]:
        # The date in Llama 3.1's template, fixed: a template that asks for today's would score differently every day.
        text = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt, date_string="26 Jul 2024"
        )
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids


class Qwen:
    """A chat: a system message, the question, and as the answer each step with `<extra_0>` behind it, where it is judged."""

    TAG: ClassVar[str] = "<extra_0>"
    SYSTEM: ClassVar[str] = "Please reason step by step, and put your final answer within \\boxed{}."
    head: HeadKind = "two_classes"

    def __init__(self, tokenizer: Any) -> None:
        _check_template(tokenizer, "qwen")
        self._tokenizer = tokenizer
        self._reserved = reserved_tokens(tokenizer)
        found = tokenizer(self.TAG, add_special_tokens=False).input_ids
        if len(found) != 1:
            raise ModelError(
                f"the tokenizer writes '{self.TAG}' as {len(found)} tokens; expected 1, as Qwen2.5-Math-PRM's does"
            )
        [self._tag] = found

    def ids(self, question: str, steps: Sequence[str]) -> list[int]:
        """See StepFormat."""
        check_plain(self._reserved, question, steps)
        messages = [
            {"role": "system", "content": self.SYSTEM},
            {"role": "user", "content": question},
            {"role": "assistant", "content": "".join(step + self.TAG for step in steps)},
        ]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return _up_to_last(ids, self._tag, self.TAG, len(steps))


class Skywork:
    """Begin-of-text and question, then the steps, each on a line, judged at its newline; every line tokenised by itself."""

    head: HeadKind = "value"

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.bos_token:
            raise ModelError(
                "the tokenizer has no begin-of-text token; expected one, as in Skywork-o1-Open-PRM's inference code"
            )
        self._tokenizer = tokenizer
        self._reserved = reserved_tokens(tokenizer)
        self._newline = tokenizer("\n").input_ids[-1]

    def ids(self, question: str, steps: Sequence[str]) -> list[int]:
        """See StepFormat."""
        check_plain(self._reserved, question, steps)
        if broken := [step for step in steps if "\n" in step]:
            raise QuestionError(f"step {broken[0]!r} has several lines; expected one, for a line's end is where it is judged")
        ids: list[int] = list(self._tokenizer(f"{self._tokenizer.bos_token}{question}\n").input_ids)
        for step in steps:
            ids += [*(self._tokenizer(step).input_ids if step else []), self._newline]
        return ids


FORMATS: dict[str, type[MathShepherd] | type[RLHFlow] | type[Qwen] | type[Skywork]] = {
    "math_shepherd": MathShepherd,
    "rlhflow": RLHFlow,
    "qwen": Qwen,
    "skywork": Skywork,
}
"""Name -> how such a process reward model reads solutions."""


def _up_to_last(ids: list[int], tag: int, name: str, steps: int) -> list[int]:
    """The tokens up to the last step tag, where there are as many as steps."""
    if (found := ids.count(tag)) != steps:
        raise QuestionError(
            f"{found} step tags '{name}' in a solution of {steps} steps; expected one a step: "
            "the question or a step holds the tag itself, or the tokenizer is not this model's"
        )
    return ids[: len(ids) - ids[::-1].index(tag)]


def reserved_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """Finds the tokenizer's special tokens in plain text."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    special = {*added, *tokenizer.all_special_tokens}
    return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True)))) if special else None


def check_plain(reserved: re.Pattern[str] | None, question: str, steps: Sequence[str]) -> None:
    """Raise QuestionError where a text holds one of the reserved tokens."""
    for text in (question, *steps):
        if reserved and (found := reserved.search(text)):
            raise QuestionError(
                f"{text!r} holds '{found[0]}', which the critic's tokenizer reads as structure; expected plain text"
            )


def _check_template(tokenizer: Any, name: str) -> None:
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(f"the tokenizer has no chat template; expected one, for format '{name}' is a chat")
