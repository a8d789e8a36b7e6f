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
    """Of all layers and the last norm at the end of the forward pass."""
    norm = 0 if offloaded(job) else job.micro[0] * job.shape.hidden * (4 + 2 * job.compute_bytes)
    return of_layers(job) + norm


def of_layers(job: Job) -> float:
    """A layer that is computed again keeps its input alone."""
    (tokens, _), shape, c = job.micro, job.shape, job.compute_bytes
    inputs = 0 if offloaded(job) else job.recomputed * tokens * shape.hidden * c
    whole = (shape.layers - job.recomputed) * tokens * per_token(shape, c, job.device.on_cpu)
    return whole + inputs + 2 * tokens * shape.head_dim * c  # the embeddings of positions


def offloaded(job: Job) -> bool:
    """Whether what layers keep, and the last norm, is on the host meanwhile."""
    return job.config.policy.offload_activations and not job.device.on_cpu


def layer_backward(job: Job) -> dict[str, float]:
    """A layer at work: what the others keep, its own again where it is recomputed, gradients by its activations, its
    whole weights with those of the next one in coming, their gradients, and those of the layer before in float32, which
    are being reduced."""
    (tokens, _), shape, c = job.micro, job.shape, job.compute_bytes
    shared = 4 * shape.hidden if c == 4 else 0  # the input is what its first norm keeps
    again = tokens * (per_token(shape, c, job.device.on_cpu) - shared) if job.recomputed else 0
    flowing = tokens * c * (2 * shape.intermediate + shape.hidden)
    return {
        "activations": of_layers(job) + again + flowing,
        "gathered weights": shape.root * c + shape.layer * c * (2 if job.shards > 1 else 1),
        "layers' gradients": 0 if job.is_lora else shape.layer * (c + 4),
    }
