"""Measuring what gradients cost."""

from rad.measure.saved import Entry, Ledger, saved_bytes

__all__ = ["Entry", "Ledger", "saved_bytes"]
