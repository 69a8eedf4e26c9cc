"""Measuring what gradients cost, in bytes and in noise."""

from rad.measure.explain import MostlyExactWarning, explain
from rad.measure.gradient import GradientNoise, Moments, gradient_noise, gradients, hessian_product
from rad.measure.peak import peak_bytes, peak_resident
from rad.measure.saved import Entry, Ledger, saved_bytes

__all__ = [
    "Entry",
    "GradientNoise",
    "Ledger",
    "Moments",
    "MostlyExactWarning",
    "explain",
    "gradient_noise",
    "gradients",
    "hessian_product",
    "peak_bytes",
    "peak_resident",
    "saved_bytes",
]
