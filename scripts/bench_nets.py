"""Step time and memory of any net under every method and its rivals, on a CPU or a GPU.

Methods take turns, a step each, so that a drift of the machine's speed meets all alike. A step is forward pass, loss,
backward pass and optimizer on one fixed batch. Rivals of a summary that keep gradients exact: ``checkpoint`` computes
every block again, ``accumulate`` splits the batch, ``offload`` moves what is kept to the CPU, ``compile:0.3`` is
PyTorch's compiler with such an activation memory budget. Of summaries there are ``rounding``, or ``rounding:2`` to so
many bits; ``rounding+compile``, compiled; ``allocated``, with bits for each kept tensor in the bytes of ``rounding``;
``same``, ``different`` and ``projection``, the paper's, with a tenth of what weight gradients need. Of every method
that is not compiled, ``+graph`` makes one whose steps are replays of a CUDA graph: ``exact+graph``.

Rows are written as they come, so that a run that is stopped leaves what it has found.

    python scripts/bench_nets.py --net gpt --methods exact,rounding,checkpoint,accumulate,compile:0.3
    python scripts/bench_nets.py --net resnet50 --batch 128 --size 224 --device cuda --dtype bf16 --out results/a.md
    python scripts/bench_nets.py --net gpt,resnet18 --out results/tradeoff.md --figure results/tradeoff
    python scripts/bench_nets.py --net gpt2_small --device cuda --dtype amp --memory 8GB   # the largest inputs that fit
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

# Random weights from configurations; nothing is looked for on a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch
from torch.autograd.graph import save_on_cpu
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

import rad
from experiments.errors import UserError, first_line
from experiments.labels import Look, look
from experiments.nets import CASES, FunctionalGPT, build
from experiments.options import THREADS, listed, positive, present, size, whole
from experiments.runs import provenance
from experiments.show.figures import save
from experiments.show.tables import markdown, prepare, publish
from experiments.show.tradeoff import Point, tradeoff_figure
from rad.budget.size import shown
from rad.measure import peak_bytes, saved_bytes
from rad.sketch.bits import MAX_BITS

METHODS = "exact,rounding,checkpoint,accumulate,compile,compile:0.3"
PAPERS = {
    "same": rad.Sample(0.1, per="batch"),
    "different": rad.Sample(0.1, per="element"),
    "projection": rad.Project(0.1),
}
OTHERS = ("allocated", *PAPERS, "offload", "rounding+compile")
GRAPH = "+graph"  # of any of them
# As what others know them.
LOOKS = {"rounding": "rad_round", "allocated": "rad_auto", "same": "rad_same", "different": "rad_diff"}
LOOKS |= {"projection": "rad_proj", "compile": "compile_budget"}
DTYPES = {"fp32": torch.float32, "amp": torch.float32, "bf16": torch.bfloat16}
# Blocks of the nets, one of which is computed again at a time.
BLOCKS = (
    "BasicBlock Bottleneck InvertedResidual MBConv CNBlock EncoderBlock SwinTransformerBlock GPT2Block BertLayer "
    "LlamaDecoderLayer T5Block _Down"
).split()


def method(text: str) -> str:
    """The type of a method, see ``METHODS``."""
    plain = text.removesuffix(GRAPH)
    name, _, number = plain.partition(":")
    known = name in (*METHODS.split(","), *OTHERS) and (text == plain or "compile" not in name)
    if known and number:
        known = name in ("rounding", "compile") and (whole(1, MAX_BITS)(number) if name == "rounding" else True)
        known = known and (name == "rounding" or positive(number) <= 1)
    if not known:
        raise argparse.ArgumentTypeError(f"there is no method {text!r}; choose from {METHODS}, {', '.join(OTHERS)}")
    return text


def look_of(method: str) -> Look:
    """How it is called and drawn."""
    for suffix, said in ((GRAPH, "graph"), ("+compile", "compiled")):
        if method.endswith(suffix):
            its = look_of(method.removesuffix(suffix))
            return replace(its, label=f"{its.label}, {said}", colour=look(method).colour)
    name, _, number = method.partition(":")
    its = look(LOOKS.get(name, name))
    if name == "rounding":
        return replace(its, label=f"rounding, {number} bits" if number else "rounding")
    if name == "compile":
        return replace(its, label=f"compiled, budget {number}" if number else "compiled")
    return replace(its, label=its.short)


class Bench:
    """One method on one net.

    Args:
        method: Its name, see ``METHODS``.
        model: The net with its loss, already on its device, not to be used again.
        inputs: Of the batch.
        args: The options of the command line.
    """

    def __init__(self, method: str, model: nn.Module, inputs: tuple[Tensor, ...], args: argparse.Namespace) -> None:
        self.method, self.inputs, self.device = method, inputs, args.device
        self.name, _, number = method.removesuffix(GRAPH).partition(":")
        self.parts = args.parts if self.name == "accumulate" else 1
        self.amp = args.dtype == "amp"
        rounding = rad.Rounding(bits=int(number) if self.name == "rounding" and number else args.bits)
        if self.name.startswith("rounding"):
            rad.convert(model, rounding, generator=rad.nn.Seeds(0))
        elif self.name in PAPERS:
            rad.convert(model, PAPERS[self.name], generator=rad.nn.Seeds(0))
        elif self.name == "allocated":
            self.run = rad.convert(model, rounding, generator=rad.nn.Seeds(0))
            loss = functools.partial(self.loss, inputs)
            rad.convert(model, rad.allocate(model, loss, saved_bytes(loss).total), generator=rad.nn.Seeds(0))
        elif self.name == "checkpoint":
            recompute_blocks(model)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
        self.budget = float(number) if self.name == "compile" and number else None
        self.run = torch.compile(model) if "compile" in self.name else model
        self.graph = None
        self.seconds: list[float] = []

    def loss(self, inputs: tuple[Tensor, ...]) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            return self.run(*inputs)

    def step(self) -> None:
        self.optimizer.zero_grad()
        keep = save_on_cpu(pin_memory=True) if self.name == "offload" else nullcontext()
        budget = nullcontext() if self.budget is None else functorch.patch(activation_memory_budget=self.budget)
        for part in zip(*(t.chunk(self.parts) for t in self.inputs), strict=True):
            with keep, budget:
                loss = self.loss(part) * (len(part[0]) / len(self.inputs[0]))
            loss.backward()
        self.optimizer.step()

    def capture(self) -> None:
        """Makes each further step a replay of a CUDA graph."""
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            self.step()
        torch.cuda.current_stream(self.device).wait_stream(side)
        converted = any(isinstance(module, rad.nn.Converted) for module in self.run.modules())
        graph = rad.nn.CUDAGraph(self.run) if converted else torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        self.graph = graph

    def timed(self) -> float:
        synchronize(self.device)
        start = time.perf_counter()
        (self.step if self.graph is None else self.graph.replay)()
        synchronize(self.device)
        return time.perf_counter() - start

    def memory(self) -> tuple[int, int]:
        """Bytes held for the backward pass, of one part if there are several, and the allocator's peak of a step."""
        part = tuple(t.chunk(self.parts)[0] for t in self.inputs)
        held = 0 if self.name == "offload" else saved_bytes(lambda: self.loss(part)).total
        self.optimizer.zero_grad()
        gc.collect()
        return held, peak_bytes(self.step, self.device)


def recompute_blocks(model: nn.Module) -> None:
    """Lets every block keep only its input."""
    blocks = [(m, "forward") for m in model.modules() if type(m).__name__ in BLOCKS]
    blocks += [(m, "layer") for m in model.modules() if isinstance(m, FunctionalGPT)]
    if not blocks:
        raise UserError(f"no block of {type(model).__name__} is known to be computed again; leave checkpoint out")
    for module, name in blocks:
        setattr(module, name, functools.partial(checkpoint, getattr(module, name), use_reentrant=False))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def profiled(bench: Bench) -> str:
    """Where the time of a step goes."""
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.device.type == "cuda" else [])]
    with profile(activities=kinds) as watch:
        bench.timed()
    by = "self_device_time_total" if bench.device.type == "cuda" else "self_cpu_time_total"
    return watch.key_averages().table(sort_by=by, row_limit=30, max_name_column_width=60)


def make(args: argparse.Namespace, batch: int | None, size: int | None) -> tuple[nn.Module, tuple[Tensor, ...], str]:
    case = build(args.net, batch, size)
    dtype = DTYPES[args.dtype]
    inputs = tuple(t.to(args.device, dtype if t.is_floating_point() else None) for t in case.inputs)
    return case.model.to(args.device, dtype), inputs, case.describe


def table(benches: list[Bench], found: dict[str, tuple[int, int]]) -> str:
    rows, exact = [], benches[0]
    for bench in benches:
        held, peak = found[bench.method]
        cells = {
            "method": bench.method,
            "held MB": f"{held / 1e6:,.1f}",
            "÷ exact": "–",
            "peak MB": f"{peak / 1e6:,.1f}",
        }
        first = found.get(exact.method)
        assert first is not None
        cells["÷ exact"] = f"{held / max(first[0], 1):.3f}" if held else "–"
        cells["peak ÷ exact"] = f"{peak / max(first[1], 1):.3f}"
        cells["ms a step (quartiles)"] = cells["÷ exact (quartiles)"] = "–"
        if len(bench.seconds) > 1:
            low, mid, high = (1000 * q for q in statistics.quantiles(bench.seconds, n=4))
            cells["ms a step (quartiles)"] = f"{mid:.1f} ({low:.1f} to {high:.1f})"
            ratios = [a / b for a, b in zip(bench.seconds, exact.seconds, strict=False)]
            low, mid, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
            cells["÷ exact (quartiles)"] = f"{mid:.3f} ({low:.3f} to {high:.3f})"
        rows.append(cells)
    return markdown(rows, right=True)


def compare(args: argparse.Namespace, report: Callable[[str], None]) -> list[Point]:
    """All methods side by side."""
    methods = ["exact", *(m for m in args.methods if m != "exact")]
    graphs = [m for m in methods if m.endswith(GRAPH)]
    if graphs and args.device.type != "cuda":
        raise UserError(f"{graphs[0]} replays a CUDA graph and needs --device cuda, not {args.device}")
    model, inputs, describe = make(args, args.batch, args.size)
    benches: list[Bench] = []
    found: dict[str, tuple[int, int]] = {}
    notes: list[str] = []
    for method in methods:
        try:
            bench = Bench(method, copy.deepcopy(model), inputs, args)
            for _ in range(args.warmup):  # compiles what is to be compiled
                bench.timed()
            found[method] = bench.memory()
            if method.endswith(GRAPH):
                bench.capture()
                bench.timed()
        except Exception as error:  # a rival that does not run is a finding, too
            notes.append(f"{method}: {type(error).__name__}: {first_line(error)}")
            report("\n".join([describe, *notes]))
            continue
        benches.append(bench)
        if args.profile:
            print(f"{method}\n{profiled(bench)}")
        report("\n\n".join([describe, table(benches, found), *notes]))
    gc.freeze()
    for i in range(args.rounds):
        for bench in benches:
            bench.seconds.append(bench.timed())
        if i % 10 == 9 or i == args.rounds - 1:
            report("\n\n".join([describe, table(benches, found), *notes]))
    return points(benches, found)


def points(benches: list[Bench], found: dict[str, tuple[int, int]]) -> list[Point]:
    """What the figure shows."""
    exact, shown = benches[0], []
    for bench in benches:
        ratios = [a / b for a, b in zip(bench.seconds, exact.seconds, strict=True)]
        if len(ratios) > 1:
            low, middle, high = statistics.quantiles(ratios, n=4)
            memory = found[bench.method][1] / max(found[exact.method][1], 1)
            shown.append(Point(look_of(bench.method), memory, (low, middle, high)))
    return shown


def largest(fits: Callable[[int], bool], start: int) -> int:
    """The largest number that fits, to an eighth of itself; 0 if not even ``start`` does."""
    low, high = 0, start
    while fits(high):
        low, high = high, 2 * high
    while low and high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def capacities(args: argparse.Namespace, report: Callable[[str], None]) -> None:
    """The largest batch, and the largest input at batch 1, with which a step stays within the given memory."""
    rows: list[dict[str, str]] = []
    for method in args.methods:

        def fits(batch: int, size: int | None, method: str = method) -> bool:
            try:
                model, inputs, _ = make(args, batch, size)
                weights = sum(p.nbytes for p in model.parameters())
                bench = Bench(method, model, inputs, args)
                bench.step()
                return weights + bench.memory()[1] <= args.memory
            except torch.OutOfMemoryError:
                return False
            finally:
                gc.collect()

        step = 64
        side = largest(lambda k: fits(1, step * k), 1) * step  # noqa: B023
        batch = largest(lambda n: fits(n, args.size), 1)  # noqa: B023
        rows.append({"method": method, "largest batch": f"{batch}", "largest size at batch 1": f"{side}"})
        report(f"within {shown(args.memory)}, weights and gradients included\n\n{markdown(rows, right=True)}")


def main() -> None:
    """Parses the command line, measures, and prints tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    nets = f"one or several of {', '.join(CASES)} (default %(default)s)"
    parser.add_argument("--net", type=listed(CASES, "net"), metavar="NET", default="gpt", help=nets)
    parser.add_argument("--batch", type=whole(1), help="examples (default: the net's usual number)")
    parser.add_argument("--size", type=whole(1), help="side of images or length of sequences (default: the usual one)")
    parser.add_argument("--device", type=present, default="cpu", help="cpu or cuda (default %(default)s)")
    parser.add_argument(
        "--dtype", default="fp32", choices=DTYPES, help="fp32, amp (autocast to bf16), bf16 (all of it)"
    )
    parser.add_argument(
        "--methods", type=listed(method), default=METHODS, help=f"default %(default)s; also {', '.join(OTHERS)}"
    )
    parser.add_argument("--bits", type=whole(1, MAX_BITS), default=3, help="of rounding (default %(default)s)")
    parser.add_argument(
        "--parts", type=whole(1), default=8, help="of a batch that is accumulated (default %(default)s)"
    )
    parser.add_argument("--rounds", type=whole(0), default=20, help="steps of each to time (default %(default)s)")
    parser.add_argument("--warmup", type=whole(1), default=3, help="steps of each before (default %(default)s)")
    parser.add_argument("--profile", action="store_true", help="print where the time of a step goes")
    parser.add_argument(
        "--memory", type=size, help="find the largest inputs within so much, such as 2GB, in place of times"
    )
    parser.add_argument("--threads", type=THREADS, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--out", type=Path, help="Markdown file to write the table to as well")
    parser.add_argument("--figure", type=Path, help="draw time against memory, as this name with .png and .pdf")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    where = provenance.describe(provenance.session(args.device))
    head = f"{args.dtype}, rad.Rounding(bits={args.bits}), {args.parts} parts accumulated; {where}"
    done: list[str] = []
    panels: list[tuple[str, list[Point]]] = []
    try:
        prepare(args.out)
        for net in args.net:
            args.net = net
            texts = [*done, ""]

            def report(text: str, net: str = net, texts: list[str] = texts) -> None:
                texts[-1] = f"{net}, {text}"
                publish("\n\n".join([head, *texts]) + "\n", args.out)

            if args.memory:
                capacities(args, report)
            else:
                panels.append((net, compare(args, report)))
            done = texts
        if args.figure and any(points for _, points in panels):
            print(*save(tradeoff_figure(panels), args.figure), sep="\n")
    except (UserError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
