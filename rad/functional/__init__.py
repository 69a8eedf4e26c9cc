"""One rule for each kind of operation: exact values, memory-cheap and unbiased gradients."""

from rad.functional import attention as attention
from rad.functional import bilinear as bilinear
from rad.functional import choice as choice
from rad.functional import convolution as convolution
from rad.functional import elementwise as elementwise
from rad.functional import loss as loss
from rad.functional import multilinear as multilinear
from rad.functional import normalization as normalization
from rad.functional import pool as pool
from rad.functional import recurrent as recurrent
from rad.functional import softmax as softmax
from rad.functional.assignment import Assignment
from rad.functional.operation import Call, Keep, Kept, Summary, operation
from rad.functional.registry import RULES, rule
from rad.functional.sharing import Sharing

__all__ = ["RULES", "Assignment", "Call", "Keep", "Kept", "Sharing", "Summary", "operation", "rule"]
