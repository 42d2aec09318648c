"""One-line errors in the engines and the policy; each must make its test fail: (file, old text, new text, test)."""

ENDINGS = "llm_mcts/engines/endings.py"
ENDINGS_TEST = "tests/llm_mcts/engines/test_endings.py"
SAMPLING = "llm_mcts/engines/transformers/sampling.py"
SAMPLING_TEST = "tests/llm_mcts/engines/transformers/test_drawing.py"
JOINING = "llm_mcts/engines/transformers/joining.py"
JOINING_TEST = "tests/llm_mcts/engines/transformers/test_joining.py"
BATCHING = "llm_mcts/engines/transformers/batching.py"
BATCHING_TEST = (
    "tests/llm_mcts/engines/transformers/test_batching.py tests/llm_mcts/engines/transformers/test_transformers_engine.py"
)
CACHE = "llm_mcts/engines/transformers/kv_cache.py"
CACHE_TEST = "tests/llm_mcts/engines/transformers/test_kv_cache.py"
HTTP = "llm_mcts/engines/openai/http.py"
HTTP_TEST = "tests/llm_mcts/engines/openai/test_http.py"
REPLIES = "llm_mcts/engines/openai/replies.py"
OPENAI_TEST = "tests/llm_mcts/engines/openai/test_openai_engine.py"
VLLM = "llm_mcts/engines/vllm/engine.py"
VLLM_TEST = "tests/llm_mcts/engines/vllm/test_vllm_engine.py"
POLICY = "llm_mcts/policy.py"
POLICY_TEST = "tests/llm_mcts/test_policy.py"
SOLVER = "llm_mcts/solver.py"
SOLVER_TEST = "tests/llm_mcts/test_solver.py"

MUTANTS: list[tuple[str, str, str, str]] = [
    # Where a text ends.
    (ENDINGS, "count >= row.request.max_tokens or", "count > row.request.max_tokens or", ENDINGS_TEST),
    (ENDINGS, "len(row.prompt) + count >= self.context", "count >= self.context", ENDINGS_TEST),
    (ENDINGS, "return body[: min(cuts)] if cuts", "return body[: max(cuts)] if cuts", ENDINGS_TEST),
    (ENDINGS, "    body = text.lstrip()\n", "    body = text\n", ENDINGS_TEST),
    (ENDINGS, "len(prompt) + room > self.context", "len(prompt) + room >= self.context", ENDINGS_TEST),
    (ENDINGS, 'random.Random(f"{self.request.seed}/{self.index}")', 'random.Random(f"{self.request.seed}")', ENDINGS_TEST),
    (ENDINGS, "end is not None and not self.done.done()", "end is not None", ENDINGS_TEST),
    # Which token is drawn.
    (SAMPLING, "right=True", "right=False", SAMPLING_TEST),
    (
        SAMPLING,
        "logits / torch.where(greedy, 1.0, temperature)",
        "logits * torch.where(greedy, 1.0, temperature)",
        SAMPLING_TEST,
    ),
    (SAMPLING, "- logits.logsumexp(dim=-1)", "- scaled.logsumexp(dim=-1)", SAMPLING_TEST),
    (SAMPLING, "p.cumsum(-1) - p < top_p", "p.cumsum(-1) < top_p", SAMPLING_TEST),
    (SAMPLING, "        p = p / p.sum()\n", "", SAMPLING_TEST),
    (SAMPLING, "p >= min_p * p[0]", "p >= min_p", SAMPLING_TEST),
    # What is computed together.
    (JOINING, "enough = have + _WORTH_WAITING_FOR", "enough = _WORTH_WAITING_FOR", JOINING_TEST),
    (JOINING, "len(tokens) >= enough and any(", "any(", JOINING_TEST),
    (JOINING, "    waiting.extendleft(reversed(later))\n", "    waiting.extendleft(later)\n", JOINING_TEST),
    (JOINING, "        room -= decodes\n", "", JOINING_TEST),
    (JOINING, "(len(group) + 1) * width <= (", "len(group) * width <= (", JOINING_TEST),
    (JOINING, " and entry.slot == group[-1].slot + 1", "", JOINING_TEST),
    (JOINING, "at for at in self.wanted if at < self.have", "at for at in () if at < self.have", JOINING_TEST),
    (BATCHING, "            self.slots.copy_row(last, i, self.active[last].length)\n", "", BATCHING_TEST),
    (BATCHING, "entry.fresh.index(at) - first for at", "entry.fresh.index(at) for at", BATCHING_TEST),
    (BATCHING, "[row.random.random() for row in rows]", "[rows[0].random.random() for row in rows]", BATCHING_TEST),
    (BATCHING, "        for i in reversed(ended):", "        for i in ended:", BATCHING_TEST),
    (
        BATCHING,
        "entry.work.count(len(entry.fresh), len(entry.work.known) - len(entry.fresh))",
        "entry.work.count(len(entry.work.known), 0)",
        BATCHING_TEST,
    ),
    # Keys and values.
    (CACHE, "device=device) <= self._positions[..., None]", "device=device) < self._positions[..., None]", CACHE_TEST),
    (CACHE, "edge.kv[..., n:, :].clone()", "edge.kv[..., : len(edge.tokens) - n, :].clone()", CACHE_TEST),
    (CACHE, "sorted(self._leaves(), key=lambda e: e.used)", "sorted(self._leaves(), key=lambda e: -e.used)", CACHE_TEST),
    (CACHE, "                self.bytes -= leaf.kv.nbytes\n", "                self.bytes -= 1\n", CACHE_TEST),
    (
        CACHE,
        "bigger[:, :, :had_rows, :, :had_length] = self.kv\n",
        "bigger[:, :, :1, :, :had_length] = self.kv[:, :, :1]\n",
        CACHE_TEST,
    ),
    # Servers that fail.
    (HTTP, "range(self.config.retries + 1)", "range(self.config.retries)", HTTP_TEST),
    (HTTP, "self.config.backoff * 2.0 ** min(attempt - 1, 20)", "self.config.backoff * 2.0 ** min(attempt, 20)", HTTP_TEST),
    (HTTP, "self.waits_until = max(self.waits_until, now + error.wait)", "self.waits_until = now", HTTP_TEST),
    (HTTP, "_RETRIED = {408, 409, 429}", "_RETRIED = {408, 409}", HTTP_TEST),
    (HTTP, "1 if r.failures and sound else self.config.concurrency", "self.config.concurrency", HTTP_TEST),
    (HTTP, "                replica.answered()\n                return reply", "                return reply", HTTP_TEST),
    (HTTP, 'return text.replace(self._key, "***") if self._key else text', "return text", HTTP_TEST),
    (REPLIES, 'used or reply.num_tokens, "stop")', 'reply.num_tokens, "stop")', OPENAI_TEST),
    (
        REPLIES,
        "    spent.count_prompt(prompt - cached, cached)\n",
        "    spent.count_prompt(prompt, cached)\n",
        OPENAI_TEST,
    ),
    (REPLIES, "if body else None\n", "if reply.text else None\n", OPENAI_TEST),
    (VLLM, "                    counted = True\n", "", VLLM_TEST),
    (VLLM, "            usage += spent\n", "            pass\n", VLLM_TEST),
    # The policy and the solver.
    (POLICY, "log(sum(exp(x) for x in logprobs))", "max(logprobs)", POLICY_TEST),
    (POLICY, "(step for step in steps if not step.terminal)", "(step for step in steps if step.terminal)", POLICY_TEST),
    (POLICY, "            return [state] * n\n", "            pass\n", POLICY_TEST),
    (SOLVER, "seed = self.config.seed if seed is None else seed", "seed = self.config.seed", SOLVER_TEST),
    (SOLVER, "for policy in (self.policy, self.policy.fast):", "for policy in (self.policy,):", SOLVER_TEST),
]
