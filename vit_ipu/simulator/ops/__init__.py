"""The module `poptorch.ops`: every public name of PopTorch's python/ops.py."""

from __future__ import annotations

from vit_ipu.simulator.ops.blocks import BeginBlock, Block, BlockFunction, LegacyBeginBlockFn, NameScope, removeBlocks
from vit_ipu.simulator.ops.control_flow import cond, for_loop
from vit_ipu.simulator.ops.ctc import ctc_beam_search_decoder
from vit_ipu.simulator.ops.host_ops import CPU, custom_op
from vit_ipu.simulator.ops.markers import (
    identity_loss,
    nop,
    recomputationCheckpoint,
    serializedMatMul,
    set_available_memory,
)
from vit_ipu.simulator.ops.multi_conv import MultiConv
from vit_ipu.simulator.ops.overlap import set_overlap_for_input, set_overlap_for_output
from vit_ipu.simulator.ops.points import fps, nearest
from vit_ipu.simulator.ops.print_tensor import ipu_print_tensor
from vit_ipu.simulator.ops.slices import dynamic_slice, dynamic_update

__all__ = [
    "CPU",
    "BeginBlock",
    "Block",
    "BlockFunction",
    "LegacyBeginBlockFn",
    "MultiConv",
    "NameScope",
    "cond",
    "ctc_beam_search_decoder",
    "custom_op",
    "dynamic_slice",
    "dynamic_update",
    "for_loop",
    "fps",
    "identity_loss",
    "ipu_print_tensor",
    "nearest",
    "nop",
    "recomputationCheckpoint",
    "removeBlocks",
    "serializedMatMul",
    "set_available_memory",
    "set_overlap_for_input",
    "set_overlap_for_output",
]
