"""Return-based contrastive representation learning for RL. Importing this package loads nothing heavy."""

from typing import TYPE_CHECKING

from gen_core.lazy import attach

if TYPE_CHECKING:
    from gen_rl.methods.rcrl import RCRL
    from gen_rl.sb3 import RCRLDQN

__all__ = ["RCRL", "RCRLDQN"]
__getattr__, __dir__ = attach(__name__, {"RCRL": "methods.rcrl", "RCRLDQN": "sb3"})
