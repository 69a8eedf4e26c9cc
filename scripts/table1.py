"""Table 1 of the paper, measured: what the three nets hold for one step at batch 150, by the fraction kept.

Beside the paper's figure and the formula behind it stand the bytes that autograd really holds plus weights, and
the peaks of a whole step (forward and backward pass): of PyTorch's allocator, and of the process's resident memory in
a fresh process for each row. Inputs are random; no data set is needed.

    python scripts/table1.py
    python scripts/table1.py --method rad_proj --out results/table1_rad_proj.md
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from hydra.errors import HydraException
from torch import Tensor
from tqdm import tqdm

from experiments.errors import UserError
from experiments.methods import Method
from experiments.runs import provenance
from experiments.runs.configs import CONFIGS, composed
from experiments.runs.parts import make
from experiments.show.tables import last, markdown, prepare, publish
from rad.measure import peak_bytes, peak_resident, saved_bytes
from rad.nn import Seeds

BATCH = 150
FRACTIONS = (1.0, 0.8, 0.5, 0.3, 0.1, 0.05)


@dataclass(frozen=True)
class Net:
    """A net of the table; sizes are per example unless said otherwise.

    Attributes:
        title: The paper's name for it.
        model: Its config.
        inputs: Shape of an example.
        paper: The paper's figures in MB, by fraction.
        parameters: Parameters in all.
        features: Input features of all layers, of which a fraction is kept.
        bits: Bits of the ReLU's masks as the paper counts them.
        more_bits: Bits that the masks have besides, before pooling.
        extra: Bytes for the whole batch that the paper adds.
        replayed: Those of them that need not be kept: random numbers, replayed from seeds.
        bits_of_exact: Whether masks are kept beside exact inputs; the recurrent loop reads them off its states.
    """

    title: str
    model: str
    inputs: tuple[int, ...]
    paper: tuple[float, ...]
    parameters: int
    features: int
    bits: int
    more_bits: int = 0
    extra: int = 0
    replayed: int = 0
    bits_of_exact: bool = True

    def formula(self, fraction: float) -> float:
        """Bytes by the formula that gives every figure of the paper's table within 0.01 MB."""
        masks = BATCH * self.bits / 8 if fraction < 1 else 0
        return 4 * BATCH * fraction * self.features + 4 * self.parameters + 40 * BATCH + masks + self.extra

    def explained(self, fraction: float) -> float:
        """Bytes by which an honest count differs from the formula: real masks, and nothing for what is replayed."""
        # At fraction 1 the formula has no masks.
        masks = BATCH * (self.more_bits + (self.bits if fraction == 1 and self.bits_of_exact else 0)) / 8
        return masks - self.replayed


NETS = (
    Net("ConvNet", "cnn", (3, 32, 32), (23.08, 19.19, 12.37, 7.82, 3.28, 2.14), 85_802, 37_888, 34_816, 30_720),
    Net("fully connected", "mlp", (1, 28, 28), (2.69, 2.51, 2.21, 2.00, 1.80, 1.75), 419_110, 1_684, 900),
    Net(
        "RNN",
        "irnn",
        (784, 1),
        (47.93, 39.98, 25.85, 16.43, 7.01, 4.66),
        11_310,
        78_500,
        78_400,
        extra=4 * 784 * BATCH + 313_600,
        replayed=313_600,
        bits_of_exact=False,
    ),
)


@dataclass(frozen=True)
class Measured:
    """Bytes of one step: held for backward, of weights, and the two peaks."""

    saved: int
    weights: int
    allocated: int
    resident: int | None


def measure(model: str, inputs: tuple[int, ...], method: str, fraction: float) -> Measured:
    """Measures one row; to be called in a process of its own."""
    config = composed([f"model={model}", f"method={method}", f"budget={fraction}"])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made: Method = make(config.method)
    prepared = made.prepare(make(config.model), Seeds(0))
    x, y = torch.randn(BATCH, *inputs), torch.zeros(BATCH, dtype=torch.int64)

    def forward(size: int = BATCH) -> Tensor:
        return F.cross_entropy(prepared(x[:size]), y[:size])

    def step(size: int = BATCH) -> None:
        prepared.zero_grad()
        forward(size).backward()

    step(2)  # loads libraries and compiles loops, which would count as memory of the step
    try:
        resident = peak_resident(step)  # first, for later steps use again what this one has left to the process
    except OSError:
        resident = None
    weights = sum(p.nbytes for p in prepared.parameters())
    return Measured(saved_bytes(forward).total, weights, peak_bytes(step), resident)


def rows(net: Net, method: str) -> Iterator[tuple[str, float | None, Measured]]:
    """What is measured of a net: a label, the fraction where the paper has it, and the measurement."""
    cases = [(f"{fraction:g}", fraction, method) for fraction in FRACTIONS]
    cases += [("stock PyTorch", None, "exact"), ("checkpointing", None, "checkpoint")]
    for label, fraction, chosen in cases:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as fresh:
            yield label, fraction, fresh.submit(measure, net.model, net.inputs, chosen, fraction or 1.0).result()


def cells(net: Net, label: str, fraction: float | None, found: Measured) -> dict[str, str]:
    """One line of the table."""
    total = found.saved + found.weights
    paper = formula = explained = unexplained = ""
    if fraction is not None:
        expected, more = net.formula(fraction), net.explained(fraction)
        paper, formula = f"{net.paper[FRACTIONS.index(fraction)]:.2f}", _mb(expected)
        explained, unexplained = f"{more / 1e6:+.3f}", f"{left(net, fraction, found):+.1%}"
    return {
        "net": net.title,
        "fraction": label,
        "paper": paper,
        "formula": formula,
        "measured": _mb(total),
        "explained": explained,
        "left": unexplained,
        "peak, allocator": _mb(found.allocated),
        "peak, process": "not known" if found.resident is None else _mb(found.resident),
    }


def left(net: Net, fraction: float, found: Measured) -> float:
    """What neither formula nor explanation covers, relative to the formula."""
    expected = net.formula(fraction)
    return (found.saved + found.weights - expected - net.explained(fraction)) / expected


def _mb(count: float) -> str:
    return f"{count / 1e6:.2f}"


def main() -> None:
    """Parses the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    methods = sorted(path.stem for path in CONFIGS.glob("method/rad_*.yaml"))
    parser.add_argument("--method", choices=methods, default="rad_same", help="estimator (default %(default)s)")
    parser.add_argument("--net", choices=[net.model for net in NETS], help="only this one")
    parser.add_argument("--out", type=Path, help="Markdown file to write the table to as well, with a .csv beside it")
    args = parser.parse_intermixed_args()
    nets = [net for net in NETS if args.net in (None, net.model)]
    table, numbers = [], []
    try:
        prepare(args.out)
        with tqdm(total=len(nets) * (len(FRACTIONS) + 2), disable=None, unit="row") as progress:
            for net in nets:
                for row in rows(net, args.method):
                    table.append(cells(net, *row))
                    label, fraction, found = row
                    more = {"left": left(net, fraction, found)} if fraction is not None else {}
                    numbers.append({"net": net.title, "fraction": label, **asdict(found), **more})
                    progress.update()
    except (UserError, HydraException, OSError) as error:
        sys.exit(f"error: {error}")
    torch.set_num_threads(1)  # as in the processes that measured
    text = f"""\
Bytes in MB (10⁶), batch {BATCH}, {args.method}; \
{provenance.describe(provenance.session(torch.device("cpu")))}

{markdown(table, right=True)}

* paper: its Table 1; formula: what gives the paper's figures within 0.01 MB. Gradients are in neither.
* measured: what autograd holds for backward (kept input features, masks, logits, targets, seeds), plus weights.
* explained: by how much an honest count differs from the formula. The ConvNet's masks are those before pooling, not
  after; at fraction 1 they are kept as well, but for the RNN's; the RNN's random numbers are replayed from seeds.
* left: measured less formula less explained, relative to the formula.
* peak, allocator: the most that PyTorch held at once in a forward and backward pass, gradients of the weights and
  passing activations included, weights and input batch not. peak, process: growth of a fresh process's resident memory.
  Part of both are the copies that the CPU's convolution routines make for themselves.
"""
    publish(text, args.out)
    if args.out is not None:
        with last(args.out):
            pd.DataFrame(numbers).to_csv(args.out.with_suffix(".csv"), index=False)


if __name__ == "__main__":
    main()
