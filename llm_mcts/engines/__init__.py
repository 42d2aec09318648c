"""Engines: what runs the language models."""

from importlib import import_module

from llm_mcts.engines.base import Engine, EngineConfig

ENGINES = {
    "transformers": "llm_mcts.engines.transformers.engine:TransformersEngine",
    "openai": "llm_mcts.engines.openai.engine:OpenAIEngine",
    "vllm": "llm_mcts.engines.vllm.engine:VLLMEngine",
    "openvino": "llm_mcts.engines.openvino.engine:OpenVINOEngine",
}
"""Name -> module:class, imported when it is asked for; each class takes an EngineConfig."""


def build_engine(config: EngineConfig) -> Engine:
    """The engine that the configuration names.

    Raises:
        ConfigError: the engine's package is not installed.
        ModelError: the model cannot be used.
    """
    module, _, cls = ENGINES[config.name].partition(":")
    engine: Engine = getattr(import_module(module), cls)(config)
    return engine
