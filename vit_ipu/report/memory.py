"""Table and picture of the predicted memory of each IPU against what the IPU has."""

from __future__ import annotations

from typing import List, Tuple

from vit_ipu.config import Config
from vit_ipu.planner.hardware import hardware_of
from vit_ipu.planner.memory import KINDS, IpuMemory, memory_per_ipu
from vit_ipu.report.colors import INK
from vit_ipu.report.drawing import Picture, draw_grid, finish_axes, for_file, new_figure, size_for
from vit_ipu.report.layout import cell, scrolled

_MEGABYTE = 1e6
_WIDTH = 9
"""Width of a bar, in units of the font's size, that stands for all memory of an IPU."""
_VERDICTS = {True: "fits", False: "does not fit", None: "not known"}


def memory_table(config: Config) -> str:
    """Returns predicted megabytes by kind and IPU, with a bar for the total and its range, as HTML."""
    hardware = hardware_of(config.pipeline.ipu_version)
    ipus = memory_per_ipu(config, hardware)
    kinds = [kind.replace("_", " ") for kind in KINDS]
    names = ["IPU", *kinds, "total", f"of {ipus[0].capacity / _MEGABYTE:,.0f} MB", "verdict"]
    head = "".join(f'<th scope="col">{cell(name)}</th>' for name in names)
    rows = "".join(_row(number, memory) for number, memory in enumerate(ipus))
    note = (
        f"<p>Predicted megabytes in training on each {cell(hardware.name)} IPU, not measured. The light part of a bar "
        "is what the total may be at most.</p>"
    )
    numbers = f'<table class="memory"><thead><tr>{head}</tr></thead>{rows}</table>'
    return note + scrolled("Predicted memory", numbers)


def _row(number: int, memory: IpuMemory) -> str:
    sizes = [*(memory.by_kind[kind] for kind in KINDS), memory.total]
    numbers = "".join(f'<td class="number">{size / _MEGABYTE:,.0f}</td>' for size in sizes)
    return (
        f'<tr><th scope="row">IPU {number}</th>{numbers}<td>{_bar(memory)}</td><td>{_VERDICTS[memory.fits]}</td></tr>'
    )


def _bar(memory: IpuMemory) -> str:
    pieces = "".join(_piece(share, kind) for share, kind in _pieces(memory))
    low, high = memory.total / memory.capacity, memory.range[1] / memory.capacity
    label = f"{low:.0%}, at most {high:.0%}"
    return f'<span class="scale" role="img" aria-label="{label}" style="width: {_WIDTH}em">{pieces}</span>'


def _pieces(memory: IpuMemory) -> List[Tuple[float, str]]:
    """Returns the shares of the memory that the total takes, and that it may take besides, at most all together."""
    total, high = (min(size / memory.capacity, 1.0) for size in (memory.total, memory.range[1]))
    return [(total, "bar"), (max(0.0, high - total), "bar possible")]


def _piece(share: float, kind: str) -> str:
    return f'<span class="{kind}" style="width: {_WIDTH * share:.2f}em"></span>'


def memory_picture(config: Config, title: str) -> Picture:
    """Returns predicted megabytes by kind and IPU, with the range of each total, as files."""
    hardware = hardware_of(config.pipeline.ipu_version)
    ipus = memory_per_ipu(config, hardware)
    figure = new_figure(*size_for(len(ipus), around=2.6))
    axes, rows = figure.subplots(), range(len(ipus))
    left = [0.0] * len(ipus)
    for number, kind in enumerate(KINDS):
        sizes = [memory.by_kind[kind] / _MEGABYTE for memory in ipus]
        axes.barh(rows, sizes, left=left, height=0.7, color=f"C{number}", label=kind.replace("_", " "))
        left = [start + size for start, size in zip(left, sizes)]
    capacity = ipus[0].capacity / _MEGABYTE
    axes.axvline(capacity, color=INK, linestyle=":", label=f"memory of an IPU, {capacity:,.0f} MB")
    for row, memory in enumerate(ipus):
        low, high = (size / _MEGABYTE for size in memory.range)
        axes.plot([low, high], [row, row], color=INK, linewidth=1, marker="|")
        text = f" {memory.total / _MEGABYTE:,.0f} MB, {_VERDICTS[memory.fits]}"
        axes.text(max(high, left[row]), row, text, va="center", color=INK, fontsize=9)
    axes.set_yticks(rows, labels=[f"IPU {ipu}" for ipu in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(capacity, *(memory.range[1] / _MEGABYTE for memory in ipus)))
    axes.set_xlabel("MB; the lines from | to | are ranges", color=INK)
    draw_grid(axes, "x")
    finish_axes(axes, f"Predicted memory in training on each {hardware.name} IPU, not measured")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, labelcolor=INK)
    return for_file(figure, "memory", title)
