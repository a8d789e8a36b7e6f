"""The mesh that a policy is sharded over."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from capo_fast.errors import ConfigError
from capo_fast.runtime.hosts import Place
from capo_fast.runtime.job import this_job


def policy_mesh(device_type: str, shard: Literal["node", "all"]) -> DeviceMesh:
    """The FSDP2 mesh of all ranks that learn. A collective of these ranks.

    1-D, [ranks]: every weight is cut into one shard per rank. With `node` and several nodes it is 2-D, [nodes, ranks
    per node], named replicate and shard: each node has all shards (HSDP), so that only gradients cross the network
    between hosts. Raises ConfigError where nodes have different numbers of ranks.
    """
    job = this_job()
    world = job.learners
    count = _learners_per_node(job.places[:world]) if shard == "node" else world
    if count == world:
        return init_device_mesh(device_type, (world,))
    return init_device_mesh(device_type, (world // count, count), mesh_dim_names=("replicate", "shard"))


def _learners_per_node(places: tuple[Place, ...]) -> int:
    counts = Counter(place.node for place in places)
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{count} on {places[node].host}" for node, count in counts.items())
        raise ConfigError(
            f"policy.shard: found node with {found}, wanted equally many ranks that learn on every host, or all"
        )
    return counts.popitem()[1]
