"""How far a critic can be trusted: the command `llm-mcts diagnose`, its figures and its report."""
