"""Bytes of activations in the learner, as transformers' dense decoders keep them for the backward pass.

A norm keeps its input in float32, the normalised input and its result; attention keeps q, k, v, its result, and a
float32 per head; the MLP keeps gate, its activation, up and their product. The layers share the position embeddings.

Letters: N packed tokens, H hidden, I intermediate, D head size, c bytes of policy.dtype, L parameters of a layer.
"""

from __future__ import annotations

from capo_fast.plan.job import Job
from capo_fast.plan.shapes import ModelShape


def per_token(shape: ModelShape, c: int, on_cpu: bool) -> float:
    """Bytes of one layer without recomputation, per packed token."""
    norm = shape.hidden * (4 + 2 * c)
    # On a CPU the results of the segments are concatenated: a copy.
    attention = c * (shape.query * (3 if on_cpu else 2) + 2 * shape.key) + 4 * shape.heads
    heads = (shape.heads + shape.kv_heads) * shape.head_dim * (4 + c) if shape.kind == "qwen3" else 0
    return 2 * norm + attention + heads + 4 * c * shape.intermediate


def kept(job: Job) -> float:
    """Bytes of all layers and the last norm at the end of the forward pass."""
    norm = 0 if offloaded(job) else job.micro[0] * job.shape.hidden * (4 + 2 * job.compute_bytes)
    return of_layers(job) + norm


def of_layers(job: Job) -> float:
    """Bytes of all layers. A recomputed layer keeps only its input."""
    (tokens, _), shape, c = job.micro, job.shape, job.compute_bytes
    inputs = 0 if offloaded(job) else job.recomputed * tokens * shape.hidden * c
    whole = (shape.layers - job.recomputed) * tokens * per_token(shape, c, job.device.on_cpu)
    return whole + inputs + 2 * tokens * shape.head_dim * c  # the position embeddings


def offloaded(job: Job) -> bool:
    """True if the activations of layers and the last norm are offloaded to the host."""
    return job.config.policy.offload_activations and not job.device.on_cpu


def layer_backward(job: Job) -> dict[str, float]:
    """A layer's backward pass: activations of the other layers, its own if recomputed, gradients by its activations,
    its whole weights and the prefetched ones of the next layer, their gradients, and the previous layer's gradients in
    float32 during their reduction."""
    (tokens, _), shape, c = job.micro, job.shape, job.compute_bytes
    shared = 4 * shape.hidden if c == 4 else 0  # the input is the tensor kept by its first norm
    again = tokens * (per_token(shape, c, job.device.on_cpu) - shared) if job.recomputed else 0
    flowing = tokens * c * (2 * shape.intermediate + shape.hidden)
    return {
        "activations": of_layers(job) + again + flowing,
        "gathered weights": shape.root * c + shape.layer * c * (2 if job.shards > 1 else 1),
        "layers' gradients": 0 if job.is_lora else shape.layer * (c + 4),
    }
