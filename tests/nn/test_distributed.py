"""Two processes that share a converted model: averaged gradients, draws of their own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from blocks import distance
from sketches import normal
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import rad
from rad.nn import Seeds

SKETCH, RANKS = rad.Rounding(bits=3), 2


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))


def converted(model: nn.Module) -> nn.Module:
    return rad.convert(model, SKETCH, generator=Seeds(0))


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(x).square().mean().backward()
    grads = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
    return {name: (g.full_tensor() if isinstance(g, DTensor) else g).clone() for name, g in grads.items()}


def work(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=RANKS)
    x = normal(32, 16)  # the same on both: what differs are the draws
    found = {}
    alone = converted(net())
    found["alone"] = gradients(alone, x)
    found["stock"] = gradients(net(), x)
    ddp = DistributedDataParallel(converted(net()))
    found["ddp"] = gradients(ddp, x)
    # Each rank's own draw, from the seeds that DDP began with.
    local = converted(net())
    found["local"] = gradients(local, x)
    with ddp.no_sync():
        found["again"] = gradients(ddp, x)
    sharded = converted(net())
    for layer in (sharded[0], sharded[3], sharded):
        fully_shard(layer)
    found["fsdp"] = gradients(sharded, x)
    sharded_before = net()
    for layer in (sharded_before[0], sharded_before[3], sharded_before):
        fully_shard(layer)
    converted(sharded_before)
    found["fsdp first"] = gradients(sharded_before, x)
    torch.save(found, Path(directory) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(Path(__file__).parent)]))
        mp.spawn(work, (str(directory),), nprocs=RANKS)
    return [torch.load(directory / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.slow
def test_ranks_draw_on_their_own_though_seeded_alike(ranks):
    assert distance(ranks[0]["alone"], ranks[1]["alone"]) > 0.01
    assert distance(ranks[0]["again"], ranks[1]["again"]) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp", "fsdp first"])
def test_gradients_are_the_mean_of_the_ranks(how, ranks):
    mean = {name: (ranks[0]["local"][name] + ranks[1]["local"][name]) / 2 for name in ranks[0]["local"]}
    for rank in ranks:
        assert distance(rank[how], mean) < 1e-5
        assert 0.001 < distance(rank[how], rank["stock"]) < 0.3
