"""Measuring what gradients cost."""

from rad.measure.peak import peak_bytes, peak_resident
from rad.measure.saved import Entry, Ledger, saved_bytes

__all__ = ["Entry", "Ledger", "peak_bytes", "peak_resident", "saved_bytes"]
