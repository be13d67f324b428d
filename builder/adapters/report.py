"""The report of a build: one HTML file that needs no other, from what JSON holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from builder.adapters import pictures

STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1120px;margin:2em auto;padding:0 1em;
color:#1f2328}
h1{font-size:1.5em} h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid #d0d7de}
table{border-collapse:collapse;font-size:12px} td,th{padding:3px 7px;text-align:right;
border-bottom:1px solid #eaeef2;white-space:nowrap} td:first-child,th:first-child{text-align:left}
tr.chosen{background:#ddf4ff} .wide{overflow-x:auto}
.kept{background:#dafbe1;padding:.7em 1em} .refused{background:#ffebe9;padding:.7em 1em}
.gallery{display:flex;flex-wrap:wrap;gap:10px} figure{margin:0;width:130px;font-size:12px}
figure img{image-rendering:pixelated;width:84px;min-height:40px} svg{max-width:100%}
"""


def html(document: Mapping[str, Any], examples: Sequence[Any]) -> str:
    """Render a report.

    Args:
        document: what the report's JSON holds.
        examples: those of `document["confused"]`, in their order.
    """
    title = f"{document['name']} {document['version']}"
    body = [
        f"<h1>Build of {escape(title)}</h1>",
        _summary(document),
        "<h2>Candidates</h2>",
        f"<p>{escape(document['choice']['why'])}.</p>",
        _candidates(document),
        _broken(document["choice"]["broken"]),
        _failed(document["failed"]),
        _pareto(document),
        *_cascade(document),
        *_reliability(document),
        "<h2>Classes, on the test part</h2>",
        _classes(document),
        *_gallery(document, examples),
        "<h2>Data</h2>",
        _data(document["data"]),
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}'
        f"</title><style>{STYLE}</style><body>{''.join(body)}</body></html>\n"
    )


def _summary(document: Mapping[str, Any]) -> str:
    promise, test = document["promise"], document["test"]
    if not promise["kept"]:
        return f'<p class="refused"><b>No promise.</b> {escape(promise["says"])}</p>'
    said = (
        f"<b>{escape(promise['target'])}</b>: threshold {promise['threshold']:.4f}, "
        f"{_percent(promise['spilled'])} of the calibrate part spilled. "
    )
    if test is not None:
        said += (
            f"On the test part: {_percent(test['spilled'])} spilled "
            f"({_limits(test['spilled_limits'])}), the cascade right on "
            f"{_percent(test['accuracy'])} ({_limits(test['accuracy_limits'])}), the "
            f"edge alone on {_percent(test['edge_accuracy'])}"
        )
        if test["cloud_accuracy"] is not None:
            said += f", the cloud alone on {_percent(test['cloud_accuracy'])}"
        said += "."
    return f'<p class="kept">{said}</p>'


def _candidates(document: Mapping[str, Any]) -> str:
    head = (
        "candidate",
        "KB",
        "KB deflated",
        "p50 ms",
        "p99 ms",
        "memory MB",
        "accuracy",
        "macro F1",
        "agreement",
        "cal. error",
        "distinct",
        "deferral",
        "cost",
        "front",
    )
    rows = []
    for each in document["candidates"]:
        test = each["test"]
        cells = (
            each["name"],
            f"{each['size_bytes'] / 1000:.1f}",
            f"{each['deflated_bytes'] / 1000:.1f}",
            f"{each['p50_ms']:.3f}",
            f"{each['p99_ms']:.3f}",
            f"{each['peak_memory_kb'] / 1000:.1f}",
            _percent(test["accuracy"]),
            f"{test['macro_f1']:.4f}",
            _percent(test["agreement"]),
            f"{test['calibration_error']:.4f}",
            str(test["distinct"]),
            _deferral(test["deferral"], test["deferral_limits"]),
            _percent(each["cost"]),
            "yes" if each["name"] in document["choice"]["front"] else "",
        )
        chosen = each["name"] == document["choice"]["chosen"]
        rows.append((cells, ' class="chosen"' if chosen else ""))
    return (
        _table(head, rows)
        + "<p>Times and memory are of LiteRT with one thread on the machine that built; "
        "accuracy to deferral are of the test part, cost of the choose part.</p>"
    )


def _deferral(score: float | None, limits: Sequence[float] | None) -> str:
    if score is None:
        return "-"
    between = "" if limits is None else f" ({limits[0]:.2f} to {limits[1]:.2f})"
    return f"{score:.3f}{between}"


def _broken(broken: Mapping[str, Sequence[str]]) -> str:
    if not broken:
        return ""
    items = "".join(
        f"<li>{escape(name)}: {escape('; '.join(why))}</li>"
        for name, why in broken.items()
    )
    return f"<p>Not allowed:</p><ul>{items}</ul>"


def _failed(failed: Mapping[str, str]) -> str:
    items = "".join(
        f"<li>{escape(name)}: {escape(why)}</li>" for name, why in failed.items()
    )
    return f"<p>Could not be made:</p><ul>{items}</ul>" if items else ""


def _pareto(document: Mapping[str, Any]) -> str:
    points = {
        each["name"]: (each["size_bytes"] / 1000, 100 * each["cost"])
        for each in document["candidates"]
    }
    choice = document["choice"]
    return pictures.pareto_svg(points, choice["front"], choice["chosen"])


def _cascade(document: Mapping[str, Any]) -> list[str]:
    curves = {
        each["name"]: each["test"]["curve"]
        for each in document["candidates"]
        if each["test"]["curve"]
    }
    if not curves:
        return []
    bounds = document["bounds"]
    curves |= {f"{document['shown']}, {name}": bounds[name] for name in bounds}
    test = document["test"]
    marked = None if test is None else (test["spilled"], test["accuracy"])
    (first, *_) = document["candidates"]
    return [
        "<h2>Accuracy against spilling</h2>",
        pictures.cascade_svg(curves, marked, first["test"]["cloud_accuracy"]),
    ]


def _reliability(document: Mapping[str, Any]) -> list[str]:
    import numpy as np

    said = document["reliability"]
    if not said:
        return []
    return [
        "<h2>Can confidences be believed?</h2>",
        f"<p>The shown candidate, temperature {said['temperature']:.3f}.</p>",
        pictures.reliability_svg(np.array(said["confidence"]), np.array(said["right"])),
    ]


def _classes(document: Mapping[str, Any]) -> str:
    shown = next(
        each for each in document["candidates"] if each["name"] == document["shown"]
    )
    rows = [
        (
            (
                each["name"],
                str(each["examples"]),
                f"{each['precision']:.4f}",
                f"{each['recall']:.4f}",
                f"{each['f1']:.4f}",
            ),
            "",
        )
        for each in shown["test"]["classes"]
    ]
    said = f"<p>Of {escape(shown['name'])}.</p>"
    head = ("class", "examples", "precision", "recall", "F1")
    return said + _table(head, rows)


def _gallery(document: Mapping[str, Any], examples: Sequence[Any]) -> list[str]:
    confused = document["confused"]
    if not confused:
        return []
    names = document["data"]["names"]
    figures = "".join(
        f"<figure>{pictures.example_html(example)}<figcaption>is "
        f"<b>{escape(names[each['truth']])}</b>, said {escape(names[each['said']])} "
        f"({_percent(each['confidence'])}; {each['times']} such), "
        f"{'spilled' if each['spilled'] else 'kept'}</figcaption></figure>"
        for each, example in zip(confused, examples, strict=True)
    )
    return [
        "<h2>What is hard: the edge wrong, the cloud right</h2>",
        f'<div class="gallery">{figures}</div>',
    ]


def _data(data: Mapping[str, Any]) -> str:
    parts = ", ".join(f"{part} {n}" for part, n in data["parts"].items())
    said = f"<p>{escape(parts)} examples of {len(data['names'])} classes, seed {data['seed']}."
    if data["left_out"]:
        said += (
            f" {data['left_out']} copies of held-out examples were left out of train."
        )
    if data["skipped"]:
        named = ", ".join(data["skipped"][:20])
        said += f" {len(data['skipped'])} could not be read: {escape(named)}."
    return said + "</p>"


def _table(head: Sequence[str], rows: Sequence[tuple[Sequence[str], str]]) -> str:
    top = "".join(f"<th>{escape(each)}</th>" for each in head)
    lines = "".join(
        f"<tr{kind}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for cells, kind in rows
    )
    return f'<div class="wide"><table><tr>{top}</tr>{lines}</table></div>'


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _limits(limits: Sequence[float]) -> str:
    return f"{100 * limits[0]:.2f} to {100 * limits[1]:.2f} %"
