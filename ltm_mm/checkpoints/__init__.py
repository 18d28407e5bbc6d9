"""Checkpoints of any known source into any backbone here.

One file per source holds a pure function from state dict to state dict.
"""

from .fit import to_backbone
from .load import Report, load_backbone, load_into
from .read import read_state_dict

__all__ = ["Report", "load_backbone", "load_into", "read_state_dict", "to_backbone"]
