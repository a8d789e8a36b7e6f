"""The policy: a Hugging Face decoder under FSDP2 with the loss as its head. The only importer of transformers' models.

Letters: N packed tokens, T response tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import embedding

import capo_kernels as ck
from capo_fast.config.schema import PolicyConfig
from capo_fast.errors import ConfigError
from capo_fast.policy.attention import choose_attention, use_packed_attention
from capo_fast.pretrained import check_finite, check_model_folder, generation_file, read_config
from capo_fast.records import PackedBatch, TokenBatch

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Policy(nn.Module):
    """A causal language model that maps packed batches to log-probs or to a policy-gradient loss.

    The head is applied only to the rows that predict response tokens, inside the sharded module's forward, where FSDP
    has gathered its weight.
    """

    def __init__(self, model: Any, loss_kernel: str, offloads: bool = False) -> None:
        """offloads: keep the decoder's saved activations on the host until its backward pass."""
        super().__init__()
        self.model = model
        self.loss_kernel = loss_kernel
        self.offloads = offloads
        # A model made in memory has no name.
        self.generation_file = generation_file(model.name_or_path) if model.name_or_path else None
        """The bytes of `generation_config.json`, which the export copies unchanged; None if there is none."""
        if self.generation_file is not None:
            from transformers import GenerationConfig  # see load_checked_model

            # The policy never uses it, and transformers refuses to save an invalid one, which many models have.
            model.generation_config = GenerationConfig()

    def forward(self, batch: TokenBatch, spec: ck.LossSpec, loss: bool) -> Any:
        """Log-probs float32 [T]. With `loss`, for a PackedBatch: the loss (first, so that FSDP finds it) and the whole
        `ck.PolicyLoss`."""
        hidden_TH = self._hidden(batch)
        head = self.model.get_output_embeddings()
        if not loss:
            return ck.linear_token_logprobs(
                hidden_TH,
                head.weight,
                batch.targets,
                bias=head.bias,
                temperature=spec.temperature,
                impl=self.loss_kernel,
            )
        assert isinstance(batch, PackedBatch)
        result = ck.linear_policy_loss(
            hidden_TH,
            head.weight,
            batch.targets,
            bias=head.bias,
            weights=batch.weights,
            credit=batch.credit,
            advantages=batch.advantages,
            old_logprobs=batch.old_logprobs,
            ref_logprobs=batch.ref_logprobs,
            rollout_logprobs=batch.rollout_logprobs,
            cu_seqlens=batch.cu_seqlens,
            spec=spec,
            impl=self.loss_kernel,
        )
        return result.loss, result

    def _hidden(self, batch: TokenBatch) -> torch.Tensor:
        """Hidden states [T, H] of the positions that predict response tokens."""
        with save_on_cpu(pin_memory=batch.input_ids.is_cuda) if self.offloads else nullcontext():
            output = self.model.model(
                input_ids=batch.input_ids[None],
                position_ids=batch.position_ids[None],
                use_cache=False,
                lengths=batch.lengths,
                prefix=batch.prefix,
            )
        # Unlike indexing, an embedding sums the gradients of a row that several responses share in a fixed order on a
        # CPU with several threads, and in float32 on a GPU.
        return embedding(batch.rows, output.last_hidden_state[0])


def load_model(
    path: str, attention: str, untested: bool = False, dtype: torch.dtype = torch.float32, key: str = "model.path"
) -> Any:
    """The model on the host, in `dtype`, without dropout. key: the setting that names it.

    Raises ConfigError like `check_model_folder` and `check_finite`, and if `attention` can't run here.
    """
    check_model_folder(path, key, untested=untested)
    return load_checked_model(path, attention, dtype, key)


def load_checked_model(path: str, attention: str, dtype: torch.dtype = torch.float32, key: str = "model.path") -> Any:
    """`load_model` for a folder that `check_model_folder` has accepted; it is not checked again."""
    # This import loads transformers' models, which takes seconds; `capo check` needs none of them.
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    with naming_unread(path, key), naming_attention(attention):
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation=attention, trust_remote_code=False, use_safetensors=True
        )
    check_finite(path, {name: weight.detach().sum().item() for name, weight in model.named_parameters()}, key)
    switch_dropout_off(model)
    return model


def empty_model(path: str, attention: str, dtype: torch.dtype, key: str = "model.path") -> Any:
    """The model of `load_checked_model` with parameters without storage (device "meta"). Buffers that no file contains,
    such as rotary frequencies, have their values."""
    from accelerate import init_empty_weights  # see load_checked_model
    from transformers import AutoModelForCausalLM

    config = read_config(path, key)
    with naming_attention(attention), init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )
    model.tie_weights()  # making them empty has untied them
    switch_dropout_off(model)
    return model.eval()


@contextmanager
def naming_unread(path: str, key: str) -> Iterator[None]:
    """Raises ConfigError for weights that can't be read. key: the setting that names their folder."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{key}: the weights in {path} can't be read: {error}") from error


@contextmanager
def naming_attention(attention: str) -> Iterator[None]:
    """Raises ConfigError if transformers lacks the package of an attention."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"policy.attention: {attention} can't run here: {error}") from error


def switch_dropout_off(model: nn.Module) -> None:
    """Set all dropout to 0: old, new and reference log-probs must come from one function. The model's config, which is
    exported, is unchanged."""
    for module in model.modules():
        is_dropout = "Dropout" in type(module).__name__
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("drop" in name or (is_dropout and name == "p")):
                setattr(module, name, 0.0)


def dropout_of(config: Any) -> str:
    """The dropout settings of a model's config that are not 0, as text; "" if there are none."""
    entries = config.to_dict().items()
    wanted = {name: value for name, value in entries if "drop" in name and isinstance(value, float) and value > 0}
    return ", ".join(f"{name} {value:g}" for name, value in wanted.items())


def check_loss_kernel(config: PolicyConfig, vocab: int, device: torch.device) -> None:
    """Raises ConfigError if `policy.loss_kernel` can't run on this device, with this dtype and vocabulary."""
    logits = torch.zeros(1, vocab, dtype=DTYPES[config.dtype], device=device)
    try:
        ck.token_logprobs(logits, torch.zeros(1, dtype=torch.int64, device=device), impl=config.loss_kernel)
    except RuntimeError as error:
        raise ConfigError(f"policy.loss_kernel: {error}") from error


def shard_policy(model: Any, config: PolicyConfig, mesh: DeviceMesh, offload: bool = False) -> Policy:
    """The model under FSDP2: sharded by decoder layer, computed in `policy.dtype`, gradients reduced in float32.

    offload: the shards stay on the host, and a layer is on the device only while it computes.

    Raises ConfigError if `policy.attention` can't run here: sdpa with a sliding window or, on a GPU, with an old torch;
    flash_attention_2 on a CPU or in float32.
    """
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False},
            every_n_layers=int(config.gradient_checkpointing),
        )
    # FSDP descends into dataclasses: it would cast the batch's weights, votes and log-probs to bfloat16 as well.
    precision = MixedPrecisionPolicy(
        param_dtype=DTYPES[config.dtype], reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    try:
        use_packed_attention(model, choose_attention(mesh.device_type, DTYPES[config.dtype], config.attention))
    except ValueError as error:
        raise ConfigError(f"policy.attention: {error}") from error
    place = CPUOffloadPolicy() if offload else OffloadPolicy()
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=precision, offload_policy=place)
    policy = Policy(model, config.loss_kernel, config.offload_activations)
    # None would leave the weights outside the layers on the device after a pass.
    reshard = offload or None
    fully_shard(policy, mesh=mesh, mp_policy=precision, offload_policy=place, reshard_after_forward=reshard)
    return policy


def full_weights(policy: Policy, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight, gathered one at a time, by Hugging Face name, cast to `dtype`. A collective on all ranks.

    A tied head is yielded twice, as embedding and then as head, the same tensor: vLLM's CPU kernels keep a packed copy
    of each.
    """
    names: dict[torch.Tensor, list[str]] = {}
    for name, weight in policy.model.state_dict(keep_vars=True).items():
        names.setdefault(weight, []).append(name)
    for weight, its_names in names.items():
        tensor = whole(weight.detach()).to(dtype)
        yield from ((name, tensor) for name in its_names)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor; for a sharded tensor a collective."""
    if not isinstance(tensor, DTensor):
        return tensor
    # On one rank the shard is the whole tensor; `full_tensor` would take 0.1 ms.
    return tensor.to_local() if tensor.device_mesh.size() == 1 else tensor.full_tensor()
