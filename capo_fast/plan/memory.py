"""Bytes of one device, by the moment of a step and by part.

    rollout     the engine is awake, with the learner's state
    critique    the critic's server is awake instead of the policy's engine
    sync        the engine's weights are awake; the policy's are gathered one by one
    loss        the end of the forward pass of a micro-batch
    backward    the backward pass of a decoder layer, at its start
    reduction   the end of the backward pass: the gradients of embedding and head are reduced
    update      the optimizer's step

Letters: N packed tokens, T response tokens, V vocabulary, H hidden, c bytes of policy.dtype.
"""

from __future__ import annotations

from capo_fast.plan.activations import kept, layer_backward
from capo_fast.plan.engines import Engines
from capo_fast.plan.hardware import FREE, GIB
from capo_fast.plan.job import Job
from capo_fast.policy.optimizer import BLOCK
from capo_kernels.chunks import default_rows, equal_rows

Parts = dict[str, float]
"""Bytes by part."""


def moments(job: Job) -> dict[str, Parts]:
    """The moments of a rank that learns; with engines on other ranks, `rollout` and `critique` are of those."""
    learner = runtime(job) | state(job)
    if job.device.on_cpu and not job.separate_engines:  # no engine sleeps there
        learner |= engine(job) | served(job)
    weights = {} if job.separate_engines else {"engine's weights": job.engines.weights}
    found = engine_moments(job, runtime(job) if job.separate_engines else learner)
    return found | {"sync": learner | weights | passing(job)} | learning(job, learner)


def learning(job: Job, held: Parts) -> dict[str, Parts]:
    """The moments of an update, added to `held`."""
    first = first_gradients(job)
    return {
        "loss": held | first | gathered(job) | {"activations": kept(job)} | loss(job),
        "backward": held | first | layer_backward(job) | {"head's gradient": head_gradient(job)},
        "reduction": held | gradients(job) | {"head's gradient": root_reduction(job)},
        "update": held | gradients(job) | {"update": update(job)},
    }


def engine_moments(job: Job, held: Parts) -> dict[str, Parts]:
    """The moments with an awake engine, added to `held`."""
    found = {"rollout": held | engine(job) | workspace(job.engines)}
    if job.servers is not None:
        found["critique"] = held | served(job) | workspace(job.servers)
    return found


def passing(job: Job) -> Parts:
    """The largest weight whole in float32, and in engine.dtype."""
    return {"a weight in passing": job.shape.head * (4 * (job.shards > 1) + job.engines.bytes)}


def totals(job: Job) -> dict[str, float]:
    """Bytes of a device, by moment."""
    return {name: sum(parts.values()) for name, parts in moments(job).items()}


def room(job: Job) -> float:
    """Bytes of a device that are free at its fullest; negative if it does not fit. A CPU's memory is the host's."""
    beside = sum(host_in_step(job).values()) / job.here if job.device.on_cpu else 0
    return FREE * job.device.memory - beside - max(totals(job).values())


# ---- always present ----


def runtime(job: Job) -> Parts:
    """[us] The CUDA context with its kernels and NCCL's buffers, per rank and again per critic's server. Processes on
    a CPU are counted on the host."""
    count = 1 if job.servers is None else 2
    return {} if job.device.on_cpu else {"CUDA and NCCL": count * GIB}


def state(job: Job) -> Parts:
    """State of the learner between steps. Master weights are float32; LoRA's frozen base is in policy.dtype."""
    frozen = job.shape.total * job.compute_bytes if job.is_lora else 0
    found = {"weights": (4 * job.trained + frozen) / job.shards}
    if not job.config.train.offload_optimizer:
        found["optimizer"] = optimizer(job)
    if job.has_reference and not (job.config.reference.offload and not job.device.on_cpu):
        found["reference"] = reference(job)
    return found


def reference(job: Job) -> float:
    return 4 * job.shape.total / job.shards


def optimizer(job: Job) -> float:
    """AdamW's two moments."""
    each = 1 + 4 / BLOCK if job.config.train.optimizer == "adamw-8bit" else 4
    return 2 * each * job.trained / job.shards


# ---- engines ----


def engine(job: Job) -> Parts:
    return {"engine's weights": job.engines.weights, "KV cache": job.engines.cache}


def served(job: Job) -> Parts:
    """The critic's server, if the run starts one; the ranks on a CPU share it."""
    if (found := job.servers) is None:
        return {}
    share = job.here if job.device.on_cpu else 1
    return {"critic's weights": found.weights / share, "critic's KV cache": found.cache / share}


def workspace(engines: Engines) -> Parts:
    return {"engine's workspace": engines.workspace}


# ---- learning ----


def gradients(job: Job) -> Parts:
    """Float32 gradients of the trained parameters."""
    return {"gradients": 4 * job.trained / job.shards}


def first_gradients(job: Job) -> Parts:
    """Gradients of the previous micro-batches."""
    return gradients(job) if job.micro_batches > 1 else {}


def gathered(job: Job) -> Parts:
    """FSDP2's gathered weights in policy.dtype at the end of the forward pass: those outside the layers remain."""
    return {"gathered weights": job.shape.root * job.compute_bytes}


def chunk(job: Job) -> int:
    """Rows of the loss's logits computed at a time."""
    _, size = job.micro
    memory = None if job.device.on_cpu else job.device.memory
    converts = not job.is_lora and job.compute_bytes != 4
    return equal_rows(size, default_rows(size, job.shape.vocab, job.shape.hidden, job.compute_bytes, converts, memory))


def loss(job: Job) -> Parts:
    """A chunk of logits, the gradient by the head (of several chunks in float32, then converted), and the hidden states
    [T, H] with their gradient. A bfloat16 chunk on a CPU is multiplied in float32."""
    (_, size), rows, c = job.micro, chunk(job), job.compute_bytes
    logits = rows * job.shape.vocab * (c + (4 if c != 4 and job.device.on_cpu else 0))
    several = rows < size and c != 4
    head = 0 if job.is_lora else job.shape.head * (c + (4 if several else 0))
    return {"a chunk of logits": logits, "head's gradient": head, "response states": 2 * size * job.shape.hidden * c}


def head_gradient(job: Job) -> float:
    """The loss's gradient by the head, until the end of the backward pass."""
    return 0 if job.is_lora else job.shape.head * job.compute_bytes


def root_reduction(job: Job) -> float:
    """Gathered weights of embedding and head, their gradients, and the gradients in float32, which are reduced to
    shards."""
    c, root = job.compute_bytes, job.shape.root
    return root * (c if job.is_lora else 2 * c + 4)


def update(job: Job) -> float:
    """Temporary tensors of the optimizer's step: for all parameters at once where PyTorch's AdamW does so, as on a GPU.
    An offloaded state is on the device."""
    train, share = job.config.train, job.trained / job.shards
    state = optimizer(job) if train.offload_optimizer and not job.device.on_cpu else 0
    if train.optimizer == "adamw-fused":
        return state
    at_once = not job.device.on_cpu and train.optimizer == "adamw"
    return state + (4 * share if at_once else 2 * 4 * job.shape.head / job.shards)


# ---- the host ----


def host(job: Job) -> Parts:
    """Memory of all ranks on the fullest host, without the devices': in a step, or at the start if that is more."""
    return max(host_in_step(job), host_at_start(job), key=lambda parts: sum(parts.values()))


def host_at_start(job: Job) -> Parts:
    """A swapped-in critic is loaded whole in float32, and freed part by part as it is cast."""
    found = {"processes": processes(job)}
    if job.config.swaps and not job.is_lora:
        found["frozen critic, as it is loaded"] = 4 * job.shape.total
    return found


def host_in_step(job: Job) -> Parts:
    found: Parts = {"processes": processes(job)}
    if job.config.swaps and not job.is_lora:
        found["frozen critic"] = job.shape.total * job.engines.bytes
    if job.config.checkpoint.asynchronous:  # written by the ranks with the first copy
        writers = min(job.shards, job.learners_here)
        found["a checkpoint's copy"] = writers * (4 * job.trained / job.shards + optimizer(job))
    return found if job.device.on_cpu else found | asleep(job) | offloaded_parts(job)


def processes(job: Job) -> float:
    """Ranks; and per critic's server its API, its engine and, if there are several, its workers."""
    count = job.here
    if (servers := job.servers) is not None:
        slices = servers.config.tensor_parallel
        count += 2 + (slices if slices > 1 else 0)
    return count * PROCESS


def asleep(job: Job) -> Parts:
    """Weights of sleeping engines, without those that are pushed again."""
    found = Parts()
    if job.is_lora and not job.separate_engines:
        found["engine's weights, asleep"] = job.here * job.engines.weights
    if (servers := job.servers) is not None:
        found["critic's weights, asleep"] = servers.config.tensor_parallel * servers.weights
    return found


def offloaded_parts(job: Job) -> Parts:
    ranks, config, found = job.learners_here, job.config, Parts()
    if config.reference.offload and job.has_reference:
        found["reference"] = ranks * reference(job)
    if config.train.offload_optimizer:
        found["optimizer"] = ranks * optimizer(job)
    if config.policy.offload_activations:
        found["activations"] = ranks * job.recomputed * job.micro[0] * job.shape.hidden * job.compute_bytes
    return found


PROCESS = 1.5 * GIB
"""[us] Code and libraries of a rank with learner and engine, or of a process of a critic's server."""
