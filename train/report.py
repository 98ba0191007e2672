"""The results of an evaluation as a Markdown table and as a picture."""

from __future__ import annotations

from html import escape
from typing import Any

from train.metrics import LOWER_IS_BETTER

COLORS = {"adapter": "#0f766e", "base": "#94a3b8", "majority": "#b45309", "human": "#7c3aed"}


def markdown(results: dict[str, Any]) -> str:
    """Return the results as a table, with a line on how to read it."""
    adapter = results["adapter"] or "no adapter"
    lines = [
        f"# {adapter} on {results['base']}",
        "",
        "| task | metric | base | adapter | difference | majority | human | n |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for task, metric, score in _scores(results):
        base = results["base_tasks"].get(task, {}).get(metric)
        paired = results["paired"].get(task, {}).get(metric)
        beside = results["references"].get(task, {})
        change = f"{paired['difference']:+.3f} [{paired['low']:+.3f}, {paired['high']:+.3f}]" if paired else ""
        cells = [
            task,
            metric.replace("_", " ") + (" (lower is better)" if metric in LOWER_IS_BETTER else ""),
            _interval(base or score),
            _interval(score) if base else "",
            change,
            *(f"{beside[who][metric]:.3f}" if metric in beside.get(who, {}) else "" for who in ("majority", "human")),
            str(score["n"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    limit = f" A seeded sample of {results['limit']} rows a task." if results["limit"] else ""
    return "\n".join(
        [
            *lines,
            "",
            "Brackets hold 95 % intervals (bootstrap of rows); the difference is adapter minus base on the same rows, "
            f"resampled together. Majority: always the commonest answer.{limit} nll is in nats per token.",
            "",
        ]
    )


def _interval(score: dict[str, Any]) -> str:
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def _scores(results: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(task, metric, score) for task, found in results["tasks"].items() for metric, score in found.items()]


def svg(results: dict[str, Any]) -> str:
    """Return a picture: one line a metric, dots for base and adapter with their intervals, ticks for what is beside."""
    scores = _scores(results)
    left, width, step, top = 190, 420, 46, 64
    parts = [
        f'<text x="16" y="22" font-size="14" font-weight="600">{escape(results["adapter"] or results["base"])}</text>'
    ]
    for n, who in enumerate(("base", "adapter", "majority", "human")):
        parts.append(f'<circle cx="{left + 6 + n * 92}" cy="42" r="4" fill="{COLORS[who]}"/>')
        parts.append(f'<text x="{left + 16 + n * 92}" y="46">{who}</text>')
    for row, (task, metric, score) in enumerate(scores):
        y = top + row * step + step // 2
        base = results["base_tasks"].get(task, {}).get(metric)
        marks = {who: values[metric] for who, values in results["references"].get(task, {}).items() if metric in values}
        drawn = [("base", base), ("adapter", score)] if base else [("base", score)]
        low, high = _range(metric, [s for _, s in drawn], list(marks.values()))

        def x(value: float, low: float = low, high: float = high) -> float:
            return round(left + width * (value - low) / (high - low), 1)

        title = (metric if metric.startswith(task) else f"{task} {metric}").replace("_", " ")
        parts += [
            f'<text x="16" y="{y + 4}">{escape(title)}</text>',
            f'<line x1="{left}" x2="{left + width}" y1="{y}" y2="{y}" stroke="#e2e8f0"/>',
            f'<text x="{left}" y="{y + 20}" font-size="9" fill="#64748b">{low:.4g}</text>',
            f'<text x="{left + width}" y="{y + 20}" font-size="9" fill="#64748b" text-anchor="end">{high:.4g}</text>',
        ]
        for who, value in marks.items():
            parts.append(
                f'<line x1="{x(value)}" x2="{x(value)}" y1="{y - 9}" y2="{y + 9}" stroke="{COLORS[who]}" '
                'stroke-width="2"/>'
            )
        for shift, (who, s) in zip((-4, 4) if base else (0,), drawn, strict=True):
            parts += [
                f'<line x1="{x(s["low"])}" x2="{x(s["high"])}" y1="{y + shift}" y2="{y + shift}" '
                f'stroke="{COLORS[who]}" stroke-width="2"/>',
                f'<circle cx="{x(s["value"])}" cy="{y + shift}" r="4" fill="{COLORS[who]}">'
                f"<title>{who}: {_interval(s)}</title></circle>",
            ]
        parts.append(f'<text x="{left + width + 12}" y="{y + 4}" font-weight="600">{score["value"]:.3f}</text>')
    size = f'width="{left + width + 70}" height="{top + len(scores) * step + 8}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="system-ui, sans-serif" font-size="12">'
        '<rect width="100%" height="100%" fill="white"/>' + "".join(parts) + "</svg>\n"
    )


def _range(metric: str, drawn: list[dict[str, Any]], marks: list[float]) -> tuple[float, float]:
    """Return the ends of a metric's axis: 0 to 1 for shares, what is needed for the others."""
    if metric in ("accuracy", "macro_f1"):
        return 0.0, 1.0
    low = min([s["low"] for s in drawn] + marks)
    high = max([s["high"] for s in drawn] + marks)
    margin = (high - low) * 0.1 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin
