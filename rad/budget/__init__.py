"""One budget of bytes for a whole model, spent where it lowers the variance of the gradient most."""

from rad.budget.allocate import AllExactWarning, allocate
from rad.budget.live import Allocator
from rad.budget.plan import Item, Plan
from rad.budget.size import bytes_of

__all__ = ["AllExactWarning", "Allocator", "Item", "Plan", "allocate", "bytes_of"]
