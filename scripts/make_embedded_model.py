#!/usr/bin/env python3
"""Train the small built-in policy: behaviour cloning on the `arith` task's training split.

    python scripts/make_embedded_model.py --steps 8000 --seed 0 --out llm_mcts/embedded

Every demonstration is correct, but the demonstrators differ in patience: some work one operation a line, most work two
in one line, a few all at once. A small model imitates their haste without their skill, so its most likely solution is
often wrong where a patient one would have been right; and their hardest problems have smaller numbers than the task's hard
level. That is the room search and training have to win.
"""

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llm_mcts.prompts import PromptConfig, PromptFormat
from llm_mcts.tasks.arith import ArithProblem, stream
from llm_mcts.tasks.arith_stories import LEVELS, LevelSpec

LEVEL_MIX = {"easy": 0.15, "medium": 0.25, "hard": 0.6}
# The demonstrations' hard problems have smaller numbers than those of the task's hard level.
SPECS = {**LEVELS, "hard": LevelSpec((4, 5), 30, 99)}
CONTEXT = 512


def demonstration(problem: ArithProblem, rng: random.Random, patient: float, pairs: float) -> str:
    """A correct solution by a demonstrator drawn at random: patient, working in pairs, or all at once."""
    mood, last = rng.random(), len(problem.operations) - 1
    if mood < patient:
        return problem.solution()
    if mood < patient + pairs:
        return problem.solution(set(range(1, last, 2)))
    return problem.solution(set())


def demonstrations(seed: int, patient: float, pairs: float) -> Iterator[tuple[str, str]]:
    """Endless (question, solution) pairs over the levels of LEVEL_MIX, training split only."""
    rng = random.Random(f"demonstrations/{seed}")
    streams = {level: stream("train", level, 1_000_000 + seed, SPECS[level]) for level in LEVEL_MIX}  # type: ignore[arg-type]
    while True:
        level = rng.choices(list(LEVEL_MIX), weights=list(LEVEL_MIX.values()))[0]
        problem = next(streams[level])
        yield problem.question, demonstration(problem, rng, patient, pairs)


def make_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every digit is a token by itself (with the space before it, where there is one)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\d| ?[^\s\d]+|\n|\s+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def batches(pairs: Iterator[tuple[str, str]], tokenizer: PreTrainedTokenizerFast, size: int, pool: int = 16):
    """Batches of (input ids, labels) with the question masked; sorted by length within a pool to save padding."""
    fmt = PromptFormat(PromptConfig())
    rng = random.Random(0)
    while True:
        rows = []
        for question, solution in itertools.islice(pairs, size * pool):
            prompt = tokenizer(fmt.question(question)).input_ids
            steps = [t for line in solution.split("\n") for t in tokenizer(fmt.step(line)).input_ids]
            rows.append((prompt + steps + [tokenizer.eos_token_id], len(prompt)))
        rows.sort(key=lambda row: len(row[0]))
        chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
        rng.shuffle(chunks)
        for chunk in chunks:
            width = max(len(ids) for ids, _ in chunk)
            ids = torch.zeros(len(chunk), width, dtype=torch.long)
            labels = torch.full((len(chunk), width), -100)
            for i, (row, prompt_length) in enumerate(chunk):
                ids[i, : len(row)] = torch.tensor(row)
                labels[i, prompt_length : len(row)] = ids[i, prompt_length : len(row)]
            yield ids, labels


def train(args: argparse.Namespace) -> None:
    """Train for `args.steps` batches with a warm-up, a constant and a linearly falling learning rate; then save."""
    torch.manual_seed(args.seed)
    sample = itertools.islice(demonstrations(args.seed + 1, args.patient, args.pairs), 20_000)
    fmt = PromptFormat(PromptConfig())
    tokenizer = make_tokenizer((fmt.question(q) + s + "\n" for q, s in sample), args.vocab_size)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    print(f"{model.num_parameters():,} parameters, vocabulary {len(tokenizer)}", flush=True)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    data = batches(demonstrations(args.seed, args.patient, args.pairs), tokenizer, args.batch_size)
    started, step, tokens, running = time.time(), 0, 0, math.nan
    while step < args.steps:
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (step + 1) / 200, max(0.02, (1 - step / args.steps) / 0.3))
        ids, labels = next(data)
        hidden = model.model(ids).last_hidden_state[:, :-1]
        chosen = labels[:, 1:] != -100
        loss = cross_entropy(model.lm_head(hidden[chosen]), labels[:, 1:][chosen])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        running = loss.item() if math.isnan(running) else 0.98 * running + 0.02 * loss.item()
        step, tokens = step + 1, tokens + ids.numel()
        if step % 100 == 0:
            minutes = round((time.time() - started) / 60, 2)
            print(json.dumps({"step": step, "minutes": minutes, "tokens": tokens, "loss": round(running, 4)}), flush=True)
            if step % 500 == 0:
                save(model, tokenizer, args.out)
    save(model, tokenizer, args.out)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write an ordinary Hugging Face folder."""
    model.generation_config.do_sample = False
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("llm_mcts/embedded"))
    parser.add_argument("--steps", type=int, default=8_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patient", type=float, default=0.45, help="share of demonstrators with one operation a line")
    parser.add_argument("--pairs", type=float, default=0.5, help="share with two operations a line")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--intermediate", type=int, default=352)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=1024)
    train(parser.parse_args())
