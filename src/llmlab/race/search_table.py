"""A search as text: the trials, best first, then the best one again with fresh seeds, and what that means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmlab.race.axes import told


def table(result: Mapping[str, Any]) -> str:
    """What `llmlab search` prints."""
    settings, best, budget = result["settings"], result["best"], result["budget"]
    fresh = best["fresh"]
    lines = [f"{settings['measure']} ({fresh['unit']}, {fresh['better']} is better)"]
    for trial in result["trials"]:
        last = trial["rungs"][-1]
        figure = "-" if last["value"] is None else f"{last['value']:.4f}"
        reason = f"  {last['reason']}" if "reason" in last else ""
        lines.append(f"  step {last['steps']:>6}  {figure:>9}  {told(trial['values'])}{reason}")
    lines += ["", f"best of {settings['trials']}: {best['overrides']}", f"  in the search  {best['found']:.4f}"]
    if fresh["mean"] is None:
        lines.append(f"  fresh seeds    -  {fresh['reason']}")
    else:
        low, high = fresh["interval"]
        mean = f"{fresh['mean']:.4f} [{low:.4f}, {high:.4f}]"
        lines.append(f"  fresh seeds    {mean}  ({len(fresh['seeds'])} of them: report this)")
    how = f"halving by {settings['eta']}" if settings["eta"] else "every trial to the end"
    return "\n".join(
        [
            *lines,
            "The figure in the search is the best of many and flatters; fresh seeds take the luck of the seed away.",
            "The same held-out text chose the trial and measures it: what it owes to that text stays.",
            f"{budget['search_steps']} steps in the search ({how}; all to the end: {budget['all_to_the_end']}), "
            f"{budget['fresh_steps']} for the fresh seeds. Runs are kept in {result['out']}",
        ]
    )
