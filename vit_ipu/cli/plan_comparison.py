"""Output of `plan` for several kinds of IPUs: their predictions side by side."""

from typing import Any, Dict, List, Sequence, Tuple

from vit_ipu.text import lasting

MEGABYTE = 1e6
VERDICTS = {True: "yes", False: "no", None: "?"}


def print_side_by_side(predictions: Sequence[Dict[str, Any]]) -> None:
    """Prints the predictions for several kinds of IPUs, a column for each."""
    rows = [("Predicted on", [prediction["hardware"] for prediction in predictions])]
    rows += _memory_rows(predictions)
    rows += _time_rows(predictions)
    width = max(len(name) for name, _ in rows)
    widths = [max(map(len, column)) for column in zip(*(cells for _, cells in rows))]
    print()
    for name, cells in rows:
        print("  ".join([f"{name:{width}}", *(f"{text:>{size}}" for text, size in zip(cells, widths))]).rstrip())
    print("# predicted MB (range) and whether they fit, ? not known: docs/planner.md")
    for prediction in predictions:
        if prediction["advice"]:
            print(f"What would fit on {prediction['hardware']}, each alone:")
            for change in prediction["advice"][:4]:
                print(f"  {change}")


def _memory_rows(predictions: Sequence[Dict[str, Any]]) -> List[Tuple[str, List[str]]]:
    ipus = range(len(predictions[0]["ipus"]))
    rows = [(f"IPU {ipu} MB", [_memory(prediction["ipus"][ipu]) for prediction in predictions]) for ipu in ipus]
    capacities = [f"{prediction['ipus'][0]['memory_capacity'] / MEGABYTE:,.0f}" for prediction in predictions]
    fits = [VERDICTS[prediction["fits"]] for prediction in predictions]
    return [("memory of an IPU, MB", capacities), *rows, ("fits", fits)]


def _memory(row: Dict[str, Any]) -> str:
    """Returns the predicted megabytes of an IPU, their range, and whether they fit."""
    total = sum(row["memory_bytes"].values()) / MEGABYTE
    low, high = row["memory_low"] / MEGABYTE, row["memory_high"] / MEGABYTE
    return f"{total:,.0f} ({low:,.0f}-{high:,.0f}) {VERDICTS[row['fits']]:>3}"


def _time_rows(predictions: Sequence[Dict[str, Any]]) -> List[Tuple[str, List[str]]]:
    ipus = range(len(predictions[0]["ipus"]))
    rows = [
        (f"IPU {ipu} ms a cycle", [f"{1e3 * prediction['ipus'][ipu]['seconds']:.2f}" for prediction in predictions])
        for ipu in ipus
    ]
    found = [prediction["predicted"] for prediction in predictions]
    rows += [
        ("images/s", [f"{one['images_per_second']:,.0f}" for one in found]),
        ("images/s, range", [f"{one['low']:,.0f} to {one['high']:,.0f}" for one in found]),
        ("seconds an update", [f"{one['seconds_per_update']:.3g}" for one in found]),
        ("limited by", [one["limited_by"] for one in found]),
    ]
    if found[0]["seconds_to_finish"] is not None:
        rows.append(("run, no evaluations", [lasting(one["seconds_to_finish"]) for one in found]))
    return rows
