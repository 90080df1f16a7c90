"""What vLLM's workers do beside what they can by themselves; vLLM mixes the class into them by its name."""

from __future__ import annotations

from typing import Any


class WorkerExtension:
    """`worker_extension_cls` of vLLM's engine; its methods are called by `collective_rpc`."""

    model_runner: Any

    def refresh_heads(self) -> None:
        """After new weights: make a head that is tied to the embeddings follow them.

        On the CPU, vLLM (0.32) multiplies by a packed copy of each weight. A reload packs what a checkpoint names, and
        that is the embeddings alone, so a tied head would go on with the first weights, and say nothing.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
        from vllm.platforms import current_platform

        if not current_platform.is_cpu():
            return  # there the head reads the embeddings' memory
        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)
