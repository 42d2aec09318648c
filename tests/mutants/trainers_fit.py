"""Planted errors in losses, returns, a step's mean over forwards, encodings, the policy gradient and the gate."""

LOSSES = "trainers/fit/losses.py"
LOSSES_TEST = "tests/trainers/fit/test_losses.py tests/trainers/fit/test_policy_losses.py tests/trainers/policy/test_joint.py"
RETURNS = "trainers/fit/returns.py"
RETURNS_TEST = "tests/trainers/fit/test_returns.py"
TERMS = "trainers/fit/terms.py"
TERMS_TEST = "tests/trainers/fit/test_terms.py"
ENCODING = "trainers/data/encoding.py"
ENCODING_TEST = "tests/trainers/fit/test_training.py tests/trainers/critic/test_objectives.py"
PG = "trainers/policy/policy_gradient/train.py"
UPDATE = "trainers/policy/policy_gradient/update.py"
PG_TEST = "tests/trainers/policy/test_policy_gradient.py"
GATE = "trainers/loop/gate.py"
GATE_TEST = "tests/trainers/loop/test_gate.py"
STATS = "llm_mcts/stats.py"
STATS_TEST = "tests/trainers/loop/test_gate.py tests/llm_mcts/test_evaluate.py"

MUTANTS: list[tuple[str, str, str, str]] = [
    (LOSSES, "return (surprises * weights[:, 1:][chosen]).mean()", "return surprises.mean()", LOSSES_TEST),
    (LOSSES, "counted = mask[:, 1:]", "counted = mask[:, :-1]", LOSSES_TEST),
    (
        LOSSES,
        "return -(targets * logprobs).sum() / len(torch.unique(item))",
        "return -(targets * logprobs).mean()",
        LOSSES_TEST,
    ),
    (LOSSES, "scores = logprobs / lengths / temperature", "scores = logprobs / temperature", LOSSES_TEST),
    (LOSSES, "better, worse = (logprobs - reference).view(-1, 2)", "better, worse = logprobs.view(-1, 2)", LOSSES_TEST),
    (LOSSES, "-logsigmoid(beta * (better - worse))", "-logsigmoid(beta * (worse - better))", LOSSES_TEST),
    (LOSSES, "- labels[mask]).square()", "- labels[mask]).abs()", LOSSES_TEST),
    (LOSSES, "return -logsigmoid(better - worse).mean()", "return -logsigmoid(better - worse).sum()", LOSSES_TEST),
    (LOSSES, "return (values * weights).sum() / weights.sum()", "return (values * weights).mean()", LOSSES_TEST),
    (LOSSES, ".transpose(1, 2) / temperature", ".transpose(1, 2) * temperature", LOSSES_TEST),
    (
        LOSSES,
        "return _mean(-advantages.detach() * logprobs, mask)",
        "return _mean(advantages.detach() * logprobs, mask)",
        LOSSES_TEST,
    ),
    (LOSSES, "-torch.minimum(ratio", "-torch.maximum(ratio", LOSSES_TEST),
    (LOSSES, "return (ours.exp() * (ours - theirs))", "return (theirs.exp() * (ours - theirs))", LOSSES_TEST),
    (LOSSES, "return policy + value_weight * _mean", "return policy + _mean", LOSSES_TEST),
    (RETURNS, "(1 - lam) * value + lam * returns[-1]", "lam * value + (1 - lam) * returns[-1]", RETURNS_TEST),
    (
        RETURNS,
        "reward + gamma * following - value + gamma * lam * advantage",
        "reward + following - value + lam * advantage",
        RETURNS_TEST,
    ),
    (RETURNS, "return [(total - own) / others for own in returns]", "return [total / others for own in returns]", RETURNS_TEST),
    (TERMS, '(batch["weight"] * batch["mask"]).sum()', 'batch["weight"].sum()', TERMS_TEST),
    (TERMS, "return batch[which][:, 1:].sum()", "return batch[which].sum()", TERMS_TEST),
    (TERMS, "torch.where(counts > 0, parts, torch.zeros_like(parts))", "parts", TERMS_TEST),
    (ENCODING, "[i >= ends[0] for i in range(len(ids))]", "[i > ends[0] for i in range(len(ids))]", ENCODING_TEST),
    (ENCODING, "[i == ends[-1] for i in range(len(ids))]", "[i == ends[0] for i in range(len(ids))]", ENCODING_TEST),
    (ENCODING, "(None, *row.labels), None, fmt, encode)", "(*row.labels, None), None, fmt, encode)", ENCODING_TEST),
    (ENCODING, "if target is not None and weight > 0:", "if target is not None:", ENCODING_TEST),
    (PG, "baselines = leave_one_out_baselines(from_start)", "baselines = mean_baselines(from_start)", PG_TEST),
    (PG, "return [[a / deviation for a in steps]", "return [[a * deviation for a in steps]", PG_TEST),
    (PG, "order[place * n : (place + 1) * n]", "order[:n]", PG_TEST),
    (UPDATE, '* (int(batch["mask"].sum()) / max(tokens, 1))', "/ len(chosen)", PG_TEST),
    (UPDATE, "if self.pg.kl_weight:", "if False:", PG_TEST),
    (UPDATE, "min(1.0, (len(self.losses) + 1) /", "min(1.0, len(self.losses) /", PG_TEST),
    (GATE, "if self.p_value / 2 <= alpha else 0", "if self.p_value <= alpha else 0", GATE_TEST),
    (GATE, "change.significant(config.alpha) < 0]", "change.significant(config.alpha) > 0]", GATE_TEST),
    (GATE, "change.difference < -config.tolerance]", "change.difference < config.tolerance]", GATE_TEST),
    (GATE, "for change in changes.values()) < 0:", "for change in changes.values()) > 0:", GATE_TEST),
    (STATS, "at_least(max(gained, lost), gained + lost)", "at_least(min(gained, lost), gained + lost)", STATS_TEST),
    (
        STATS,
        "total, g, lo = n + 2.0, gained + 0.5, lost + 0.5",
        "total, g, lo = float(n), float(gained), float(lost)",
        STATS_TEST,
    ),
    (STATS, "centre = (p + z * z / (2 * n)) /", "centre = (p + z * z / n) /", STATS_TEST),
]
