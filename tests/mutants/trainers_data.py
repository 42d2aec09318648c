"""One-line errors in the way from trees to rows; each must make its test fail: (file, old text, new text, test)."""

EVIDENCE = "trainers/data/evidence.py"
EVIDENCE_TEST = "tests/trainers/data/test_evidence.py"
CRITIC_ROWS = "trainers/data/critic_rows.py"
CRITIC_ROWS_TEST = "tests/trainers/data/test_critic_rows.py"
IMITATION = "trainers/data/imitation.py"
IMITATION_TEST = "tests/trainers/data/test_imitation.py"
TARGETS = "trainers/data/targets.py"
TARGETS_TEST = "tests/trainers/data/test_targets.py"
PREFERENCES = "trainers/data/preferences.py"
CONFIG = "trainers/data/config.py"
ROWS = "trainers/data/rows.py"
REPLAY = "trainers/loop/replay.py"
REPLAY_TEST = "tests/trainers/loop/test_replay.py"
LOOP_ROWS = "trainers/loop/rows.py"
TRAINING = "trainers/loop/training.py"
STAGES = "trainers/loop/stages.py"
STAGES_TEST = "tests/trainers/loop/test_stages.py"
SOLVERS = "trainers/loop/solvers.py"
SOLVERS_TEST = "tests/trainers/loop/test_solvers.py"
TRAINING_TEST = "tests/trainers/loop/test_training.py"
LOOP_TEST = "tests/trainers/loop/test_self_improve.py"
AGREEMENT = "trainers/questions/agreement.py"
AGREEMENT_TEST = "tests/trainers/questions/test_agreement.py"
CURRICULUM = "trainers/questions/curriculum.py"
CURRICULUM_TEST = "tests/trainers/questions/test_curriculum.py"
STEP_LABELS = "trainers/labels/step_labels.py"
STEP_LABELS_TEST = "tests/trainers/labels/test_step_labels.py"

MUTANTS: list[tuple[str, str, str, str]] = [
    # What a tree tells.
    (EVIDENCE, "prefix.visits += node.visit_count", "prefix.visits = node.visit_count", EVIDENCE_TEST),
    (EVIDENCE, "for i in range(len(steps) + 1):", "for i in range(len(steps)):", EVIDENCE_TEST),
    (EVIDENCE, "statistics[steps[:i]].wrong += not right", "statistics[steps[:i]].wrong += right", EVIDENCE_TEST),
    (EVIDENCE, "return trace.state.answer is not None and self._right", "return self._right", CRITIC_ROWS_TEST),
    (EVIDENCE, "return ends - goes_on", "return ends", TARGETS_TEST),
    (EVIDENCE, "b.score is None or a.score > b.score", "b.score is None or a.score < b.score", CRITIC_ROWS_TEST),
    (
        EVIDENCE,
        "check(trace.state.text) for trace in distinct}",
        "check(trace.state.text) for trace in self.traces}",
        EVIDENCE_TEST,
    ),
    (EVIDENCE, 'self.scored = tree.scored_by == "critic"', "self.scored = True", IMITATION_TEST),
    # Critics.
    (CRITIC_ROWS, "half = limit // 2", "half = limit", CRITIC_ROWS_TEST),
    (CRITIC_ROWS, "prefixes.get(row.steps[: i + 1])", "prefixes.get(row.steps[:i])", CRITIC_ROWS_TEST),
    (CRITIC_ROWS, "key=lambda steps: -found[steps].visits", "key=lambda steps: found[steps].visits", EVIDENCE_TEST),
    (CRITIC_ROWS, "tuple(0 if key in seen else n for", "tuple(n for", EVIDENCE_TEST),
    (CRITIC_ROWS, "return longer - shared, longer - same", "return longer - same, longer - shared", EVIDENCE_TEST),
    # Imitation.
    (
        IMITATION,
        "trace.score is None or trace.score >= min_score",
        "trace.score is None or trace.score > min_score",
        IMITATION_TEST,
    ),
    (IMITATION, "ceil(limit * (1 - pass_rate))", "ceil(limit * pass_rate)", IMITATION_TEST),
    (IMITATION, "inf if trace.score is None else -trace.score", "inf if trace.score is None else trace.score", IMITATION_TEST),
    (IMITATION, "limit = len(kept)  # no more", "pass  # no more", IMITATION_TEST),
    (IMITATION, "baseline = fmean(known) if known else 0.0", "baseline = 0.0", IMITATION_TEST),
    (CONFIG, "(score - baseline) / self.beta", "(score - baseline) * self.beta", IMITATION_TEST),
    # Targets.
    (TARGETS, "rows.sort(key=lambda pair: -pair[0])", "rows.sort(key=lambda pair: pair[0])", TARGETS_TEST),
    (TARGETS, "log(step.visits) / config.temperature", "log(step.visits) * config.temperature", TARGETS_TEST),
    (TARGETS, "config.c_outcome * x", "config.c_outcome * (1 - x)", TARGETS_TEST),
    (TARGETS, "and steps not in hopeless:", "and steps:", TARGETS_TEST),
    (TARGETS, "if steps not in taken and", "if", TARGETS_TEST),
    (
        TARGETS,
        "outcome if (share := step.outcome) is None else share",
        "0.0 if (share := step.outcome) is None else share",
        TARGETS_TEST,
    ),
    # Preferences.
    (PREFERENCES, "if high - low > min_gap", "if high - low >= min_gap", TARGETS_TEST),
    (PREFERENCES, "key=lambda prefix: -ends[prefix]", "key=lambda prefix: ends[prefix]", TARGETS_TEST),
    (PREFERENCES, "key=lambda prefix: -found[prefix].visits", "key=lambda prefix: found[prefix].visits", EVIDENCE_TEST),
    (PREFERENCES, "if q_better > q_worse]", "if q_better >= q_worse]", EVIDENCE_TEST),
    (
        PREFERENCES,
        "PairRow(problem.id, problem.question, better, worse)\n            for",
        "PairRow(problem.id, problem.question, worse, better)\n            for",
        TARGETS_TEST,
    ),
    # Rows.
    (ROWS, "if (version := data.get(", "if False and (version := data.get(", CRITIC_ROWS_TEST),
    (ROWS, "not 0 <= value <= 1:", "not 0 <= value:", CRITIC_ROWS_TEST),
    # Earlier rounds.
    (REPLAY, "config.share / (1 - config.share)", "config.share", REPLAY_TEST),
    (REPLAY, "enumerate(earlier[: config.rounds])", "enumerate(earlier)", REPLAY_TEST),
    (REPLAY, "trace.score if evidence.scored else None", "trace.score", REPLAY_TEST),
    (REPLAY, "rates |= {id_", "rates = {id_", REPLAY_TEST),
    # Questions.
    (AGREEMENT, "vote, score = n / len(traces)", "vote, score = n / sum(votes.values())", AGREEMENT_TEST),
    (AGREEMENT, "if vote < config.min_vote:", "if vote <= config.min_vote:", AGREEMENT_TEST),
    (AGREEMENT, "if trace.state.answer == answer and", "if", AGREEMENT_TEST),
    (CURRICULUM, "return self.value * (1 - self.value)", "return self.value", CURRICULUM_TEST),
    (
        CURRICULUM,
        "-rates[p.id].information, rates[p.id].value",
        "-rates[p.id].information, -rates[p.id].value",
        CURRICULUM_TEST,
    ),
    (CURRICULUM, "again = unsettled[:", "again = earlier[:", CURRICULUM_TEST),
    # Labels by completions.
    (STEP_LABELS, "config.alpha ** (1 - value)", "config.alpha ** value", STEP_LABELS_TEST),
    (STEP_LABELS, "            low = middle\n", "            low = middle + 1\n", STEP_LABELS_TEST),
    # The loop.
    (LOOP_ROWS, "agreed.reason if agreed.answer is None else None", "None", LOOP_TEST),
    (TRAINING, "range(current.number - 1, oldest - 1, -1)", "range(oldest, current.number)", TRAINING_TEST),
    (TRAINING, "getattr(current.start.critics, kind) or current", "current", TRAINING_TEST),
    (TRAINING, "trains_value and (value :=", "trains_value and not (value :=", TRAINING_TEST),
    (STAGES, "        if is_main_process():\n", "        if True:\n", STAGES_TEST),
    (STAGES, "if not stage.together and not is_main_process():", "if not is_main_process():", STAGES_TEST),
    (SOLVERS, "    former.close()\n", "", SOLVERS_TEST),
    (SOLVERS, "if former is None or former.config != models:", "if former is None:", SOLVERS_TEST),
]
