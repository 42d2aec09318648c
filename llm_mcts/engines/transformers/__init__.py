"""The default engine: any causal language model of transformers, batched continuously over a tree-shared cache."""
