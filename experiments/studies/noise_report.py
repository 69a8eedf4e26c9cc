"""What the noise of gradients comes to: added variance, who has least of it at equal bytes, and where it lies."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from experiments.labels import look
from experiments.runs.study import Record
from experiments.show.tables import markdown, provenance_lines
from experiments.studies.settings import COMPARED

__all__ = ["PAPER", "added", "at_equal_bytes", "draw_counts", "noise_report", "ratio", "shares", "short_name"]

PAPER = ("rad_same", "rad_diff", "rad_proj")
TOLERANCE = 1.1  # between bytes that count as equal


def added(frame: pd.DataFrame) -> pd.DataFrame:
    """Records with the variance that comes on top of the full batch's, in units of it, and whether none beats them."""
    parts = []
    for _, part in frame.drop(columns="layers").groupby(["net", "phase"], sort=False):
        full = part[(part["estimator"] == "small_batch") & (part["budget"] == 1)].iloc[0]
        part = part.assign(bytes_ratio=part["saved_bytes"] / part["exact_saved_bytes"], full_batch=full["batch_size"])
        small = part["estimator"] == "small_batch"
        beyond = part["variance"] - np.where(small, full["variance"], 0)
        error = np.hypot(part["variance_error"], np.where(small, full["variance_error"], 0))
        part = part.assign(added=beyond / full["variance"], added_error=error / full["variance"])
        part = part[part["budget"] < 1]
        beaten = [
            ((part["saved_bytes"] <= row.saved_bytes) & (part["added"] < row.added)).any() for row in part.itertuples()
        ]
        parts.append(part.assign(front=~np.array(beaten)))
    return pd.concat(parts, ignore_index=True)


def _best(part: pd.DataFrame, limit: float) -> pd.Series:
    """The least added variance of those that hold no more than ``limit`` bytes."""
    allowed = part[part["saved_bytes"] <= limit]
    return allowed.loc[allowed["added"].idxmin()]


def ratio(a: pd.Series, b: pd.Series) -> tuple[float, float]:
    """Added variance of one row over another's, and half of its 95 % interval (to first order)."""
    quotient = a["added"] / b["added"]
    return quotient, 1.96 * abs(quotient) * math.hypot(a["added_error"] / a["added"], b["added_error"] / b["added"])


def at_equal_bytes(frame: pd.DataFrame) -> Iterator[tuple[str, str, pd.Series, pd.Series]]:
    """Net, phase, the paper's best estimator at the budget compared, and the best of all at its bytes.

    Args:
        frame: Records with their added variance, as the study writes them to ``noise.csv``.
    """
    for (net, phase), part in frame.groupby(["net", "phase"], sort=False):
        paper = part[(part["budget"] == COMPARED) & part["estimator"].isin(PAPER)]
        if not paper.empty:
            best = _best(paper, paper["saved_bytes"].max())
            yield str(net), str(phase), best, _best(part, TOLERANCE * best["saved_bytes"])


def draw_counts(frame: pd.DataFrame) -> str:
    """How many gradients each net's variances are taken from."""
    batches = frame["estimator"] == "small_batch"
    counts = (frame[where].groupby("net", sort=False)["draws"].first() for where in (~batches, batches))
    sketches, batches = ([f"{net} {n}" for net, n in count.items()] for count in counts)
    return f"{', '.join(sketches)}; of smaller batches {', '.join(batches)}"


def _ratio(a: pd.Series, b: pd.Series) -> str:
    quotient, half = ratio(a, b)
    return f"{quotient:.3g} ± {half:.1g}"


def noise_report(records: pd.DataFrame, meta: Record) -> str:
    """All of it as Markdown.

    Args:
        records: Of the study, at each budget and phase, without those after steps.
        meta: Of the run.
    """
    frame = added(records)
    small, everything = [], []
    for (net, phase), part in frame.groupby(["net", "phase"], sort=False):
        at = part[part["budget"] == COMPARED].set_index("estimator", drop=False)
        first, batch = {"net": net, "weights": phase}, at.loc["small_batch"]
        cells = {**first, "smaller batch": f"{batch['batch_size']} of {batch['full_batch']}: {batch['added']:.3g}"}
        cells["closed form"] = f"{batch['full_batch'] / batch['batch_size'] - 1:.3g}"
        for name in [m for m in (*PAPER, "rad_round") if m in at.index]:
            cells[f"{look(name).label} ÷ smaller batch"] = _ratio(at.loc[name], batch)
        small.append(cells)
        for name, rows in part.groupby("estimator", sort=False):
            cells = {**first, "estimator": look(str(name)).label}
            for row in rows.itertuples():
                mark = "**" if row.front else ""
                cells[f"{row.budget:g}"] = f"{mark}{row.added:.3g}{mark} ({row.bytes_ratio:.3f})"
            everything.append(cells)
    biased = frame[frame["bias"] > 3 * frame["bias_error"]]
    lines = [
        "# Variance of the gradient against measured bytes",
        "",
        *provenance_lines(meta),
        f"- Draws: {draw_counts(frame)}",
        "",
        "Added variance: of the whole gradient, on top of that of the full batch, in units of that of the full batch.",
        "± is a 95 % interval from standard errors over draws. Bytes are measured, with everything autograd holds.",
        "",
        *_equal(frame),
        f"## Against a smaller batch that holds the same bytes, budget {COMPARED:g}",
        "",
        markdown(small),
        "",
        "## All: added variance (bytes ÷ exact) by budget, the front in bold",
        "",
        markdown(everything),
        "",
        *_shares(records),
        f"Bias beyond three times what it comes to by chance: {len(biased)} of {int(frame['bias'].notna().sum())}.",
    ]
    return "\n".join(lines) + "\n"


def _equal(frame: pd.DataFrame) -> list[str]:
    rows = [
        {
            "net": net,
            "weights": phase,
            "bytes ÷ exact": f"{best['bytes_ratio']:.3f}",
            "paper's best": f"{look(best['estimator']).label}: {best['added']:.3g}",
            "best": f"{look(winner['estimator']).label} ({winner['bytes_ratio']:.3f}): {winner['added']:.3g}",
            "paper's best ÷ best": _ratio(best, winner),
        }
        for net, phase, best, winner in at_equal_bytes(frame)
    ]
    title = f"## At equal bytes: {TOLERANCE:g} times those of the paper's best at budget {COMPARED:g}, at most"
    return [title, "", markdown(rows), ""] if rows else []


def shares(records: pd.DataFrame) -> pd.DataFrame:
    """The part of the trained net's variance that lies in each module, at the budget compared and of the full batch.

    Args:
        records: Of the study, with the variance by layer.

    Returns:
        Columns net, estimator (``full_batch`` for the full batch's own), module, the first part of its name, and share.
    """
    full = (records["estimator"] == "small_batch") & (records["budget"] == 1)
    records = records.assign(estimator=records["estimator"].mask(full, "full_batch"))
    rows = []
    for row in records[(full | (records["budget"] == COMPARED)) & (records["phase"] == "trained")].itertuples():
        modules: dict[str, float] = {}
        for name, variance in dict(row.layers).items():
            module = name.partition(".")[0]
            modules[module] = modules.get(module, 0.0) + variance
        whole = sum(modules.values())
        rows += [
            {"net": row.net, "estimator": row.estimator, "module": module, "share": variance / whole}
            for module, variance in modules.items()
        ]
    return pd.DataFrame(rows, columns=["net", "estimator", "module", "share"])


def _shares(records: pd.DataFrame) -> list[str]:
    lines = [
        f"## Where it lies: per cent of the variance by module of the trained net, budget {COMPARED:g}",
        "",
        "Of batches all of their variance, of sketches what they add; modules by their names in the net.",
        "",
    ]
    for net, part in shares(records).groupby("net", sort=False):
        rows = [
            {"net": net, "estimator": short_name(str(name))}
            | {str(row.module): f"{100 * row.share:.1f}" for row in of.itertuples()}
            for name, of in part.groupby("estimator", sort=False)
        ]
        lines += [markdown(rows), ""]
    return lines


def short_name(estimator: str) -> str:
    """What a narrow table calls an estimator; the full batch is one there."""
    return "full batch" if estimator == "full_batch" else look(estimator).short
