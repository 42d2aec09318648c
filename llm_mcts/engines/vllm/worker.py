"""What this framework adds to vLLM's worker processes, by vLLM's own `worker_extension_cls`.

A model whose output head shares the input embedding's weights has one tensor for both in its checkpoint. When vLLM 0.32
reloads weights it gives the new ones to the embedding alone; on CPUs the head multiplies by a packed copy, which stays that
of the former weights ("ParallelLMHead: Failed to load weights" is all it says).
"""

# mypy: disable-error-code="import-not-found"

from typing import Any


class WorkerExtension:
    """Mixed into vLLM's worker; its methods are called by `collective_rpc`."""

    model_runner: Any

    def renew_tied_head(self) -> None:
        """Give the output head the embedding's weights again, where the two are one tensor."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

        if not getattr(self.model_runner.model_config.hf_text_config, "tie_word_embeddings", False):
            return
        layers = [m for m in self.model_runner.get_model().modules() if isinstance(m, VocabParallelEmbedding)]
        heads = [layer for layer in layers if isinstance(layer, ParallelLMHead)]
        embeddings = [layer for layer in layers if not isinstance(layer, ParallelLMHead)]
        for head in heads:
            if len(embeddings) != 1 or head.weight.shape != embeddings[0].weight.shape:
                raise ValueError(f"{len(embeddings)} embeddings for a tied output head; expected one of its shape")
            if head.weight.data_ptr() != embeddings[0].weight.data_ptr():
                head.weight.data.copy_(embeddings[0].weight.data)
            head.quant_method.process_weights_after_loading(head)
