"""One-line errors in the searches and the tree; each must make its test fail: (file, old text, new text, test)."""

SELECTION = "llm_mcts/search/selection.py"
SELECTION_TEST = "tests/llm_mcts/search/test_selection.py"
LOOP = "llm_mcts/search/tree_search.py"
LOOP_TEST = "tests/llm_mcts/search/test_tree_search.py"
WAVES = "llm_mcts/search/waves.py"
WAVES_TEST = "tests/llm_mcts/search/test_waves.py"
MCTS = "llm_mcts/search/mcts.py"
EXPANSION = "llm_mcts/search/expansion.py"
EXPANSION_TEST = "tests/llm_mcts/search/test_expansion.py"
MERGING = "llm_mcts/search/merging.py"
EVALUATION = "llm_mcts/search/evaluation.py"
NORMALISATION_TEST = "tests/llm_mcts/search/test_normalisation.py"
EXPLORED = "llm_mcts/search/explored.py"
GUMBEL = "llm_mcts/search/gumbel.py"
GUMBEL_TEST = "tests/llm_mcts/search/test_gumbel.py"
VOTING = "llm_mcts/search/voting.py"
BUDGET_TEST = "tests/llm_mcts/search/test_budget.py"
PATH = "llm_mcts/search/path.py"
BEAM = "llm_mcts/search/beam.py"
TREE = "llm_mcts/tree.py"
TREE_TEST = "tests/llm_mcts/test_tree.py"

MUTANTS: list[tuple[str, str, str, str]] = [
    # Selection.
    (SELECTION, "scale = c * sqrt(2 * log(total))", "scale = -c * sqrt(2 * log(total))", SELECTION_TEST),
    (SELECTION, "scale = c * sqrt(2 * log(total))", "scale = c * sqrt(log(total))", SELECTION_TEST),
    (SELECTION, "score = child.value_sum / n + scale / sqrt(n)", "score = child.value_sum / n - scale / n", SELECTION_TEST),
    (SELECTION, "        if n == 0:\n            return child\n", "        n = n or 1\n", SELECTION_TEST),
    (SELECTION, "scale * child.prior / (1 + n)", "scale * child.prior / max(n, 1)", SELECTION_TEST),
    (SELECTION, "scale * child.prior / (1 + n)", "scale / (1 + n)", SELECTION_TEST),
    (SELECTION, "c * sqrt(node.visit_count + virtual_loss * in_flight)", "c * sqrt(node.visit_count)", SELECTION_TEST),
    (SELECTION, "node.q_value if fpu is None else fpu", "node.q_value or fpu or 0.0", SELECTION_TEST),
    (
        SELECTION,
        "n += virtual_loss * child.in_flight\n        if n == 0:",
        "n -= virtual_loss * child.in_flight\n        if n == 0:",
        SELECTION_TEST,
    ),
    (
        SELECTION,
        "n += virtual_loss * child.in_flight\n        score",
        "n -= virtual_loss * child.in_flight\n        score",
        SELECTION_TEST,
    ),
    (
        SELECTION,
        "for child in node.children)\n    if total <= 0",
        "for child in children[:1])\n    if total <= 0",
        SELECTION_TEST,
    ),
    (SELECTION, "key=lambda child: child.prior)", "key=lambda child: -child.prior)", SELECTION_TEST),
    (SELECTION, "log((total + C_BASE + 1) / C_BASE) + c", "c", SELECTION_TEST),
    # The loop and its backup.
    (LOOP, "        node.visit_count += 1\n", "", LOOP_TEST),
    (LOOP, "        node.value_sum += value\n", "        node.value_sum += value if node.parent else 0.0\n", LOOP_TEST),
    (LOOP, "        node = node.parent\n", "        node = node.parent\n        value = -value\n", LOOP_TEST),
    (LOOP, "        if root.value is None:\n", "        if True:\n", "tests/llm_mcts/search/test_anytime.py"),
    (LOOP, "return new[0] if new else self.descend(leaf)", "return leaf", LOOP_TEST),
    # Waves.
    (
        WAVES,
        "        node.in_flight += 1\n        node = node.parent",
        "        node.in_flight += 1\n        break",
        WAVES_TEST,
    ),
    (WAVES, "        node.in_flight -= 1\n", "", WAVES_TEST),
    (WAVES, "        if leaf in unvalued:\n", "        if True:\n", WAVES_TEST),
    (WAVES, "        if leaf not in counted:\n", "        if True:\n", WAVES_TEST),
    (WAVES, "            resumed[-1].in_flight += 1\n", "", "tests/llm_mcts/search/test_anytime.py"),
    (WAVES, "grown[leaf].pop(0)", "grown[leaf].pop()", "tests/golden"),
    # Expansion.
    (EXPANSION, "ceil(k * float(visits**alpha))", "floor(k * float(visits**alpha))", EXPANSION_TEST),
    (EXPANSION, "floor(alpha * importance) + 1", "floor(alpha * importance)", EXPANSION_TEST),
    (EXPANSION, "max(low, before, min(", "max(low, min(", EXPANSION_TEST),
    (EXPANSION, "abs(child.value - node.value)", "(child.value - node.value)", "tests/golden"),
    (
        EXPANSION,
        "self._requested.get(node, 0) + self._reserved[node] < width",
        "self._requested.get(node, 0) < width",
        "tests/golden",
    ),
    (EXPANSION, "step.logprob / step.num_tokens / temperature", "step.logprob / temperature", SELECTION_TEST),
    (EXPANSION, "node.depth < self.max_depth", "node.depth <= self.max_depth", "tests/llm_mcts/search/test_anytime.py"),
    (EXPANSION, "                set_priors(node, old)\n", "", "tests/llm_mcts/search/test_anytime.py"),
    (EXPANSION, "        self._reserved.clear()\n", "", "tests/llm_mcts/search/test_anytime.py"),
    (EXPANSION, "(1 - share) * p + share * g / total", "p + share * g / total", EXPANSION_TEST),
    (MERGING, "step.answer == other.answer and", "", "tests/llm_mcts/search/test_merging.py"),
    (MERGING, "n + len(siblings) - len(known), draw)", "n, draw)", "tests/llm_mcts/search/test_merging.py"),
    # Evaluation, normalisation, explored branches.
    (EVALUATION, "weight * sum(scores) / len(scores)", "weight * sum(scores)", "tests/llm_mcts/search/test_evaluation.py"),
    (EVALUATION, "(1 - before) / (missing + 1)", "(1 - before) / max(missing, 1)", "tests/llm_mcts/search/test_presets.py"),
    (SELECTION, "min(low, *means), max(high, *means)", "min(means), max(means)", NORMALISATION_TEST),
    (SELECTION, "return high - low or 1.0", "return 1.0", NORMALISATION_TEST),
    (SELECTION, "        values.append(node.q_value)\n", "        pass\n", NORMALISATION_TEST),
    (EXPLORED, "            node = node.parent\n", "            break\n", "tests/llm_mcts/search/test_explored.py"),
    (EXPLORED, "node.depth >= self.max_depth", "node.depth > self.max_depth", "tests/llm_mcts/search/test_explored.py"),
    # Gumbel.
    (GUMBEL, "max(1, ceil(log2(max(1, num_considered))))", "max(1, int(log2(max(1, num_considered))))", GUMBEL_TEST),
    (GUMBEL, "considered = max(min(2, considered), considered // 2)", "considered = max(1, considered // 2)", GUMBEL_TEST),
    (GUMBEL, "(node.value + total * mean) / (1 + total)", "mean", GUMBEL_TEST),
    (GUMBEL, "return self.noise[step] + log(step.prior)", "return log(step.prior)", GUMBEL_TEST),
    (GUMBEL, "sorted(ready, key=self.score, reverse=True)", "sorted(ready, key=self.score)", GUMBEL_TEST),
    (GUMBEL, "- child.visit_count / total", "", "tests/golden"),
    # Voting, paths and early stop.
    (
        VOTING,
        "1.0 if trace.score is None or not weighted else trace.score",
        "trace.score or 1.0",
        "tests/llm_mcts/search/test_voting.py",
    ),
    (VOTING, "winner = max(weight", "winner = min(weight", "tests/llm_mcts/search/test_voting.py"),
    (VOTING, "        if trace.state.answer is not None:\n", "        if True:\n", "tests/llm_mcts/search/test_voting.py"),
    (VOTING, "return first - second > left", "return first - second >= left", BUDGET_TEST),
    (VOTING, "best.score == 1.0", "best.score > 0.9", BUDGET_TEST),
    (MCTS, "left += config.num_parallel - 1", "pass", BUDGET_TEST),
    (MCTS, "left * max(1, config.rollouts)", "left", BUDGET_TEST),
    (MCTS, "(tree.root.visit_count - 1)", "tree.root.visit_count", "tests/llm_mcts/search/test_mcts.py"),
    (
        PATH,
        "node.visit_count - others[0].visit_count <= left",
        "node.visit_count - others[0].visit_count < left",
        "tests/llm_mcts/search/test_path.py",
    ),
    (PATH, "    return node.terminal\n", "    return True\n", "tests/llm_mcts/search/test_path.py"),
    (PATH, "temperature=0.0", "temperature=None", "tests/llm_mcts/search/test_path.py"),
    # Beams.
    (
        BEAM,
        "key=lambda node: -(node.value or 0.0)",
        "key=lambda node: (node.value or 0.0)",
        "tests/llm_mcts/search/test_beam.py",
    ),
    (BEAM, "i if node is search.tree.root else 0", "0", "tests/llm_mcts/search/test_beam.py"),
    # The tree and its record.
    (TREE, "part.value_range, part.scored_by = self.value_range, self.scored_by", "part.scored_by = self.scored_by", TREE_TEST),
    (
        TREE,
        '            data["value_range"] = list(self.value_range)\n',
        "            pass\n",
        "tests/llm_mcts/search/test_anytime.py",
    ),
    (TREE, "tree.scored_by != scored_by and tree.has_scores()", "False", TREE_TEST),
    (TREE, "        tree.scored_by = scored_by\n", "", TREE_TEST),
    (TREE, "state.steps[node.depth :]", "state.steps", TREE_TEST),
    (TREE, 'row.get("answer"))', "None)", TREE_TEST),
    (TREE, 'row["logprob"], row["tokens"]', 'row["logprob"], 1', TREE_TEST),
    (TREE, "tree.annotations[name][node] = row[name]", "pass", TREE_TEST),
]
