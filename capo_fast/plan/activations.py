"""Bytes of activations in the learner, as transformers' dense decoders keep them for the backward pass.

A norm keeps its input in float32, the normalised input and its result; attention keeps q, k, v, its result, and a
float32 per head; the MLP keeps gate, its activation, up and their product. The embeddings of positions are shared.

Letters: N packed tokens, H hidden, I intermediate, D head size, c bytes of policy.dtype, L parameters of a layer.
"""

from __future__ import annotations

from capo_fast.plan.job import Job
from capo_fast.plan.shapes import ModelShape


def per_token(shape: ModelShape, c: int, on_cpu: bool) -> float:
    """Bytes of one layer that keeps everything, per packed token."""
    norm = shape.hidden * (4 + 2 * c)
    # On a CPU the results of the segments are joined, which is a copy.
    attention = c * (shape.query * (3 if on_cpu else 2) + 2 * shape.key) + 4 * shape.heads
    heads = (shape.heads + shape.kv_heads) * shape.head_dim * (4 + c) if shape.kind == "qwen3" else 0
    return 2 * norm + attention + heads + 4 * c * shape.intermediate


def kept(job: Job) -> float:
    """Of all layers at the end of the forward pass: a layer that is computed again keeps its input alone."""
    (tokens, _), shape, c = job.micro, job.shape, job.compute_bytes
    whole = shape.layers - job.recomputed
    inputs = 0 if offloaded(job) else job.recomputed * tokens * shape.hidden * c
    rest = tokens * shape.hidden * (4 + 2 * c) + 2 * tokens * shape.head_dim * c  # the last norm, positions
    return whole * tokens * per_token(shape, c, job.device.on_cpu) + inputs + rest


def offloaded(job: Job) -> bool:
    """Whether inputs of layers are on the host meanwhile."""
    return job.config.policy.offload_activations and not job.device.on_cpu


def layer_backward(job: Job) -> dict[str, float]:
    """A layer at work: what the others keep, its own again where it is recomputed, gradients by its activations, its
    whole weights with those of the next one in coming, their gradients, and those of the layer before in float32, which
    are being reduced."""
    (tokens, responses), shape, c = job.micro, job.shape, job.compute_bytes
    again = tokens * per_token(shape, c, job.device.on_cpu) if job.recomputed else 0
    flowing = tokens * c * (3 * shape.intermediate + 2 * shape.hidden)
    gathered = shape.root * c + shape.layer * c * (2 if job.shards > 1 else 1)
    reduced = 0 if job.is_lora else shape.layer * (c + 4)
    return {
        "activations": kept(job) + again + flowing,
        "gathered weights": gathered,
        "layers' gradients": reduced,
        "response states": responses * shape.hidden * c,
    }
