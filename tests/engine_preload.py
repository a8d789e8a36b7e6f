"""Imports the modules that capo_fast.engine.vllm needs on a CPU. Only tests/forked.py uses this file.

The engine sets the same variables at its start; torch and vLLM read them when they are imported. Nothing here may start
a thread: processes could not be forked from it then.
"""

import importlib
import os

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "TORCHDYNAMO_DISABLE": "1"}

for name in (
    "vllm.entrypoints.llm",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.model_loader",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.models.qwen2",
    "capo_fast.engine.vllm",
    "capo_fast.train",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.llama.modeling_llama",
):
    importlib.import_module(name)
