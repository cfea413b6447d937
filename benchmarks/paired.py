"""What every benchmark shares: ours and the peer in turn in one run, ratios pair by pair, one JSON object last."""

from __future__ import annotations

import json
import platform
import statistics
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")


def measure(ours: Callable[[], float], peer: Callable[[], float], pairs: int = 5) -> dict[str, list[float]]:
    """Rates (bigger is better) of both, A B A B ..., after one warm-up of each."""
    ours(), peer()
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(pairs):
        rates["ours"].append(ours())
        rates["peer"].append(peer())
    return rates


def report(
    name: str,
    unit: str,
    claims: dict[str, dict[str, list[float]]],
    packages: tuple[str, ...],
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Print and write the figures of `claims` (claim -> rates of ours and peer), and `more` that was found."""
    ratios = {claim: [a / b for a, b in zip(r["ours"], r["peer"], strict=True)] for claim, r in claims.items()}
    record = {
        "name": name,
        "ratios": {claim: round(statistics.median(values), 3) for claim, values in ratios.items()},
        "spread": {claim: [round(min(values), 3), round(max(values), 3)] for claim, values in ratios.items()},
        "pairs": {claim: len(values) for claim, values in ratios.items()},
        "ours": {claim: round(statistics.median(r["ours"]), 2) for claim, r in claims.items()},
        "peer": {claim: round(statistics.median(r["peer"]), 2) for claim, r in claims.items()},
        "unit": unit,
        "versions": {"python": platform.python_version(), **{package: _version(package) for package in packages}},
        "cpu": _cpu(),
        **(more or {}),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    if "--json" not in sys.argv:
        for claim, ratio in record["ratios"].items():
            print(
                f"{claim}: {ratio} {record['spread'][claim]} ({record['ours'][claim]} / {record['peer'][claim]} {unit})"
            )
    print(json.dumps(record))
    return record


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
