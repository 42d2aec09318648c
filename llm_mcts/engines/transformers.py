"""The default engine: any causal language model of transformers, on a CPU or one GPU, batched continuously.

Requests join and leave the batch between decode steps. A joining row copies what the prefix tree holds of its prompt,
computes the rest but the last token, and then decodes with the others: the last prompt token is simply its first decode
input. Sampling draws one uniform number a token from the row's own random stream and inverts the distribution function,
so nothing is sorted and no row depends on its neighbours.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from llm_mcts.engines.base import EMBEDDED, Completion, EngineConfig, Request
from llm_mcts.engines.kv_cache import PrefixTree, SlotCache, pad_right, shared_length
from llm_mcts.errors import ModelError, QuestionError
from llm_mcts.prompts import Encoder, chat_template_of
from llm_mcts.types import Usage, meter

# A joining prompt waits one turn when another one about to be computed shares this many tokens more than the tree holds.
_WORTH_WAITING_FOR = 16
# How often the event loop turns before a batch step, so that searches that just got a reply can send their next request.
_TURNS = 4


def model_folder(model: str) -> str:
    """The folder or hub id that a model name stands for; a folder must hold a config, weights and a tokenizer."""
    if model == EMBEDDED:
        return str(Path(__file__).parent.parent / "embedded")
    path = Path(model)
    if path.is_dir():
        adapter = (path / "adapter_config.json").exists()
        wanted = {
            "adapter_config.json" if adapter else "config.json": ["adapter_config.json" if adapter else "config.json"],
            "weights (*.safetensors)": ["adapter_model.safetensors"] if adapter else ["model*.safetensors"],
            "tokenizer": ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"],
        }
        for what, patterns in wanted.items():
            if not any(next(path.glob(p), None) for p in patterns):
                raise ModelError(f"model folder {path} holds no {what}; expected a folder written by save_pretrained")
    elif model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ModelError(f"model folder {model} does not exist; expected '{EMBEDDED}', a folder or a hub id")
    return model


def resolve_device(device: str) -> torch.device:
    """The torch device of a name; "auto" is the first GPU, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The torch dtype of a name; "auto" avoids bfloat16 wherever it is emulated."""
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def load_tokenizer(model: str) -> Any:
    """Load a tokenizer; every failure is a ModelError that names the model."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model_folder(model))
    except (OSError, ValueError) as error:
        raise ModelError(f"no tokenizer for '{model}': {first_line(error)}") from error


def load_causal_lm(model: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Load a causal language model for inference; a folder with a LoRA adapter is loaded with its base and merged."""
    from transformers import AutoModelForCausalLM

    folder = model_folder(model)
    try:
        if (Path(folder) / "adapter_config.json").exists():
            from peft import AutoPeftModelForCausalLM

            loaded = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=dtype).merge_and_unload()
        else:
            loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"cannot load model '{model}': {first_line(error)}") from error
    return loaded.to(device).eval()


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@dataclass(eq=False)
class _Row:
    """One continuation under way."""

    request: Request
    prompt: list[int]
    usage: Usage
    done: "asyncio.Future[Completion]"
    random: random.Random
    generated: list[int] = field(default_factory=list)
    text: str = ""
    logprob: float = 0.0

    @property
    def length(self) -> int:
        """Tokens whose keys and values are in the cache: all but the last."""
        return len(self.prompt) + len(self.generated) - 1

    @property
    def last(self) -> int:
        """The next decode input."""
        return self.generated[-1] if self.generated else self.prompt[-1]


class TransformersEngine:
    """Continuous batching over one model. Create it and await it within one event loop at a time."""

    def __init__(self, config: EngineConfig | None = None, model: Any = None, tokenizer: Any = None) -> None:
        """Load `config.model`, or take a loaded `model` and `tokenizer` as they are."""
        self.config = config = config or EngineConfig()
        device = resolve_device(config.device)
        self.tokenizer = tokenizer or load_tokenizer(config.model)
        self.model = model if model is not None else load_causal_lm(config.model, resolve_dtype(config.dtype, device), device)
        self.model.eval()
        self._device = next(self.model.parameters()).device
        self._slots = SlotCache(self.model.config, config.max_batch, self.model.dtype, self._device)
        self._tree = PrefixTree(config.cache_mb * 2**20)
        self._eos = self._eos_ids()
        self._encode = Encoder(self.tokenizer)
        self._pieces: dict[int, str] = {}
        self._waiting: deque[_Row] = deque()
        self._active: list[_Row] = []
        self._unfinished: set[_Row] = set()
        self._loop: asyncio.Task[None] | None = None
        self.decode_steps = 0
        """Batch steps so far."""
        self.decoded_rows = 0
        """Rows over all batch steps: divided by decode_steps, the mean batch size."""

    def _eos_ids(self) -> set[int]:
        ids = getattr(self.model.generation_config, "eos_token_id", None)
        ids = ids if isinstance(ids, list) else [ids]
        return {i for i in [*ids, self.tokenizer.eos_token_id] if i is not None}

    @property
    def chat_template(self) -> Callable[[list[dict[str, str]]], str] | None:
        """Renders chat messages with the tokenizer's template up to the assistant's turn."""
        return chat_template_of(self.tokenizer)

    async def generate(self, request: Request) -> list[Completion]:
        """Continue the prompt `request.n` times.

        Raises:
            QuestionError: the prompt is empty or leaves no room in the model's context. A continuation that reaches the
                context's end before `max_tokens` finishes with reason "length".
        """
        prompt = self._encode(request.prompt)
        if not prompt:
            raise QuestionError("the prompt is empty; expected at least one token")
        if len(prompt) + 1 > self._slots.context:
            raise QuestionError(
                f"prompt of {len(prompt)} tokens; expected fewer than the model's context of {self._slots.context}: "
                "shorten the question or use fewer shots"
            )
        usage, loop = meter(), asyncio.get_running_loop()
        usage.lm_calls += 1
        rows = [
            _Row(request, prompt, usage, loop.create_future(), random.Random(f"{request.seed}/{i}")) for i in range(request.n)
        ]
        self._waiting.extend(rows)
        self._unfinished.update(rows)
        if self._loop is None or self._loop.done():
            self._loop = loop.create_task(self._run())
        return list(await asyncio.gather(*(row.done for row in rows)))

    async def _run(self) -> None:
        """Decode until nothing waits. A failure reaches every caller, never only the log."""
        try:
            while self._waiting or self._active:
                for _ in range(_TURNS):
                    await asyncio.sleep(0)
                self._drop_cancelled()
                with torch.inference_mode():
                    self._admit()
                    if self._active:
                        self._decode()
        except BaseException as error:
            told = error if isinstance(error, Exception) else RuntimeError("the engine was stopped")
            for row in self._unfinished:
                if not row.done.done():
                    row.done.set_exception(told)
            self._active.clear()
            self._waiting.clear()
            self._unfinished.clear()
            if told is not error:
                raise

    def _drop_cancelled(self) -> None:
        self._unfinished = {row for row in self._unfinished if not row.done.cancelled()}
        self._waiting = deque(row for row in self._waiting if not row.done.cancelled())
        for i in reversed([i for i, row in enumerate(self._active) if row.done.cancelled()]):
            self._remove(i)

    def _admit(self) -> None:
        """Let waiting rows join: load what the tree holds of their prompts, compute the rest in one forward."""
        joining: list[tuple[int, _Row, int]] = []  # (slot, row, tokens loaded)
        leaders: dict[tuple[int, ...], int] = {}
        copies: list[tuple[int, int, int]] = []  # (from slot, to slot, length)
        later: list[_Row] = []
        while self._waiting and len(self._active) < self.config.max_batch:
            row = self._waiting.popleft()
            slot, known = len(self._active), tuple(row.prompt[:-1])
            if known in leaders:
                copies.append((leaders[known], slot, len(known)))
                row.usage.reused_tokens += len(known)
            else:
                found = self._tree.match(known)
                have = sum(n for _, n in found)
                if any(shared_length(known, other) - have >= _WORTH_WAITING_FOR for other in leaders):
                    later.append(row)
                    continue
                self._slots.ensure_length(len(row.prompt))
                self._slots.load(slot, found)
                leaders[known] = slot
                row.usage.reused_tokens += have
                row.usage.prefilled_tokens += len(known) - have
                if have < len(known):
                    joining.append((slot, row, have))
            self._active.append(row)
        self._waiting.extendleft(reversed(later))
        self._prefill(joining)
        for source, target, length in copies:
            self._slots.copy_row(source, target, length)

    def _prefill(self, joining: list[tuple[int, _Row, int]]) -> None:
        """Compute the prompts' missing keys and values, a run of adjacent slots at a time, and store them in the tree."""
        backbone = self.model.base_model
        for run in _adjacent(joining):
            new = [row.prompt[have:-1] for _, row, have in run]
            width = max(map(len, new))
            rows = slice(run[0][0], run[-1][0] + 1)
            inputs = self._slots.window(rows, [have for _, _, have in run], width)
            backbone(input_ids=pad_right(new, width, self._device), past_key_values=self._slots, use_cache=True, **inputs)
            for slot, row, _ in run:
                self._tree.insert(row.prompt[:-1], self._slots.read(slot, row.length))

    def _decode(self) -> None:
        """One token for every active row."""
        rows = self._active
        inputs = self._slots.window(slice(0, len(rows)), [row.length for row in rows], 1)
        ids = torch.tensor([[row.last] for row in rows], device=self._device)
        logits = self.model(input_ids=ids, past_key_values=self._slots, use_cache=True, **inputs).logits[:, -1]
        tokens, logprobs = sample(logits.float(), [r.request.temperature for r in rows], [r.random.random() for r in rows])
        self.decode_steps += 1
        self.decoded_rows += len(rows)
        finished = [i for i, row in enumerate(rows) if self._append(row, tokens[i], logprobs[i])]
        for i in reversed(finished):
            self._remove(i)

    def _append(self, row: _Row, token: int, logprob: float) -> bool:
        """Add a sampled token to a row; resolve and return True when that ends it."""
        row.generated.append(token)
        row.logprob += logprob
        row.usage.generated_tokens += 1
        if token in self._eos:
            return self._finish(row, "eos", self._text(row.generated[:-1]))
        row.text += self._piece(token)
        if row.text and not row.text.isspace():
            stops = row.request.stop
            if any(stop in self._body(row, stop) for stop in stops):
                whole = str(self.tokenizer.decode(row.generated)).lstrip()
                if cuts := [at for stop in stops if (at := whole.find(stop)) >= 0]:
                    return self._finish(row, "stop", whole[: min(cuts)])
        if len(row.generated) >= row.request.max_tokens or row.length + 1 >= self._slots.context:
            return self._finish(row, "length", self._text(row.generated))
        return False

    def _body(self, row: _Row, stop: str) -> str:
        """The text in which to look for a stop string: token by token, or where a letter may span tokens, decoded whole."""
        return (row.text if stop.isascii() else str(self.tokenizer.decode(row.generated))).lstrip()

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = self.tokenizer.decode([token])
        return self._pieces[token]

    def _text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _finish(self, row: _Row, reason: Literal["stop", "eos", "length"], text: str) -> bool:
        self._unfinished.discard(row)
        if not row.done.done():
            row.done.set_result(Completion(text, row.logprob, len(row.generated), reason))
        return True

    def _remove(self, i: int) -> None:
        """Take row i out of the batch: store its keys and values, move the last row into its slot."""
        row, last = self._active[i], len(self._active) - 1
        if row.generated:
            known = [*row.prompt, *row.generated][: row.length]
            self._tree.insert(known, self._slots.read(i, row.length))
        if i != last:
            self._slots.copy_row(last, i, self._active[last].length)
            self._active[i] = self._active[last]
        self._active.pop()


def _adjacent(joining: list[tuple[int, _Row, int]]) -> list[list[tuple[int, _Row, int]]]:
    """Group joining rows whose slots are neighbours."""
    runs: list[list[tuple[int, _Row, int]]] = []
    for entry in joining:
        if runs and entry[0] == runs[-1][-1][0] + 1:
            runs[-1].append(entry)
        else:
            runs.append([entry])
    return runs


def sample(logits: Tensor, temperatures: list[float], uniforms: list[float]) -> tuple[list[int], list[float]]:
    """Draw one token a row by inverting the distribution function at `uniforms` in [0, 1).

    Args:
        logits: [B, V] float32.
        temperatures: [B]; 0 takes the most likely token.
        uniforms: [B], one number a row.

    Returns:
        Token ids and their log-probabilities at temperature 1.
    """
    temperature = torch.tensor(temperatures, device=logits.device)
    greedy = temperature == 0
    scaled = logits / torch.where(greedy, 1.0, temperature)[:, None]
    cumulative = torch.softmax(scaled, dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1:]
    u = torch.tensor(uniforms, device=logits.device)[:, None] * total
    u = torch.minimum(u, torch.nextafter(total, torch.zeros_like(total)))  # a number that rounds to 1 is still below it
    drawn = torch.searchsorted(cumulative, u, right=True).clamp(max=logits.shape[-1] - 1).squeeze(-1)
    tokens = torch.where(greedy, logits.argmax(dim=-1), drawn)
    logprobs = logits.gather(-1, tokens[:, None]).squeeze(-1) - logits.logsumexp(dim=-1)
    return tokens.tolist(), logprobs.tolist()
