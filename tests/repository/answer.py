"""The README's answer, its figure and its table, from the stored records.

python tests/repository/answer.py     writes book/_static/answer.svg, and README.md between its two marks
"""

import json
import re
from collections import Counter
from pathlib import Path

from chameleon_lite import files
from chameleon_study.claims.scoreboard import board, stored_verdicts
from chameleon_study.screen import stored_rows
from chameleon_study.streams.run import Store
from chameleon_study.streams.tables import method_frame

ROOT = Path(__file__).resolve().parents[2]
FIGURE = Path("book") / "_static" / "answer.svg"
START, END = "<!-- from results/, by python tests/repository/answer.py -->", "<!-- end -->"
HEADS = {  # regime -> name
    "R19-R1": "LoRA of rank 4",
    "R19-R2": "LoRA of equal size",
    "R3-best": "constant input",
    "R4-best": "ChameleonLLM",
}
MOST = 0.45  # nats at a panel's right end
LEFT, PANEL, TOP, LINE = 152, 120, 44, 26  # pixels
STYLE = """text { fill: #1f2328 } .soft { fill: #59636e } .grid { stroke: #d1d9e0 }
.other { stroke: #59636e; fill: #59636e } .ours { stroke: #bc4c00; fill: #bc4c00 } text.ours { stroke: none }
@media (prefers-color-scheme: dark) { text { fill: #f0f6fc } .soft { fill: #9198a1 } .grid { stroke: #3d444d }
.other { stroke: #9198a1; fill: #9198a1 } .ours { stroke: #f0883e; fill: #f0883e } }"""


def measured(results: Path) -> dict[str, dict[str, dict]]:
    """Corpus and regime to the stored row of the honest study, with `loss` and `gain` [mean, low, high] in nats."""
    corpora: dict[str, dict] = {}
    for row in stored_rows(results):
        name = row.get("experiment", "")
        if name == f"honest-{row['corpus']}" and row["regime"] in ("R0", *HEADS):
            text = row.get("difference from R0", "–").replace("[", "").replace(",", "").replace("]", "")
            mean, high, low = [-float(part) for part in text.split()] if text != "–" else (0.0, 0.0, 0.0)
            loss = float(row["test nll"].split()[0])
            corpora.setdefault(row["corpus"], {})[row["regime"]] = row | {
                "loss": loss,
                "gain": (mean, low, high),
            }
    return corpora


def answer(results: Path) -> list[str]:
    """The lines of the answer in Markdown."""
    corpora = measured(results)
    gains = [of["R4-best"]["gain"][0] for of in corpora.values()]
    over = {r: [of["R4-best"]["loss"] - of[r]["loss"] for of in corpora.values()] for r in HEADS}
    first = next(iter(corpora.values()))
    times = first["R4-best"]["parameters"] / first["R19-R1"]["parameters"]
    proofs = map(json.loads, (results / "proofs.jsonl").read_text(encoding="utf-8").splitlines())
    full = [p["numbers"]["validation_full_share"] for p in proofs if p["proof"] == "padding_share"]
    lines = (results / "table2-released-full.jsonl").read_text(encoding="utf-8").splitlines()
    whole = [json.loads(line)["metrics"] for line in lines]  # all of Alpaca, of which no proof was made
    full += [m["full_rows"] / m["rows"] for m in whole]
    verdicts = stored_verdicts(results)
    parts = board(verdicts)
    count = Counter(row["status"].split(" on ")[0] for row in parts)
    still = count["not decidable here"] + count["not tested"]
    seeds = first["R4-best"]["n seeds"]
    return [
        f"On SmolLM2-135M and {len(corpora)} corpora, {seeds} seeds each, held-out loss in nats per token:",
        "",
        f"- The paper's head lowers the frozen model's loss by {min(gains):.2f} to {max(gains):.2f}.",
        f"- It minus a LoRA of rank 4, which has 1/{times:.0f} of its parameters and the same order of texts, is "
        f"{_span(over['R19-R1'])}, with the whole interval below zero on {_below(verdicts, '1a')}. A LoRA of equal "
        f"size has a lower mean on every corpus, by {min(over['R19-R2']):.2f} to {max(over['R19-R2']):.2f}.",
        f"- The batch adds little: it minus the same network with a constant input is {_span(over['R3-best'])}, with "
        f"the whole interval below zero on {_below(verdicts, '3b')}. On texts with a planted signal "
        f"that difference is {_read(verdicts, '3d', 'planted-few')}, without the signal "
        f"{_read(verdicts, '3d', 'planted-few-null')}: there the head uses its batch, and gains nothing by it over a "
        f"head without a condition ({_shares(verdicts)}). Nor is a lower loss than the control's a proof of reading: "
        f"on other such texts without any signal it is {_read(verdicts, '3c', 'planted-null')}.",
        f"- With LoRA in the layers, as the paper describes it, the method is {verdicts['1b']['headline']} where that "
        "was run: to LoRA in the layers and on the head, in the same order of texts, and to itself with a constant "
        f"input. Minus that LoRA in random order, as one would train it, it is {_beside(verdicts, 'R17<R16 ')}.",
        "- The published losses are not those of next tokens: the released scripts score one position per row, and "
        f"{1 - max(full):.1%} to {1 - min(full):.1%} of these are padding.",
        f"- Of the {len(parts)} parts of the paper's {len({p['claim'] for p in parts})} claims, "
        f"{count['supported']} are supported, {count['contradicted']} contradicted, {count['equivalent']} equivalent "
        f"(no difference above 0.01), {still} open. GPT-2 and the whole of WikiText-2, the paper's, were not run.",
        f"- What did work is learning from each text once it is scored. {_stream(results / 'streams')}",
    ]


def _stream(results: Path) -> str:
    """What learning in the layers gained over a stream, beside what was trained beforehand."""
    store = Store(results)
    gain = method_frame(store).set_index("method")["gain"]
    data = store.records["stream S3"]["data"]
    count, trained = data["documents"]["stream"], data["tokens"]["train"]
    assert gain["S3"] > gain["R16"] > gain["S1-R2"] == gain.filter(regex=r"^(R[12]\b|S[124])").max()
    return (
        f"Over one stream of {count:,} documents LoRA in the layers gained {gain['S3']:.2f} nats from nothing, without "
        f"training texts; the same LoRA trained beforehand on {trained:,} tokens and then fixed "
        f"{gain['R16']:.2f}, the best head {gain['S1-R2']:.2f} "
        "([when context helps](notebooks/10_when_context_helps.ipynb))."
    )


def _shares(verdicts: dict[str, dict]) -> str:
    """How much of a known gain the head takes, and a LoRA of equal size in random order."""
    shares = re.findall(r"([\d.]+)%", verdicts["3d"]["cells"]["planted-few"]["number"])
    return f"it takes {shares[0]} % of the known gain, a LoRA of equal size in random order {shares[4]} %"


def _read(verdicts: dict[str, dict], part: str, corpus: str) -> str:
    """The head minus the constant input on planted text, with its interval."""
    number = verdicts[part]["cells"][corpus]["number"].split("R4-best<R3-best ")[1]
    return re.sub(r"[-+][\d.]+", lambda found: f"{float(found[0]):+.3f}", number).replace("-", "−")


def _beside(verdicts: dict, contrast: str) -> str:
    """The interval of a contrast that stands beside part 1b, for each corpus."""
    return " and ".join(
        f"{re.search(f'(?:^|, ){re.escape(contrast)}([^,]*, [^,]*)', of)[1]} on {corpus}"
        for corpus, of in verdicts["1b"]["beside"].items()
    )


def _below(verdicts: dict[str, dict], part: str) -> str:
    """On how many corpora the first interval of a part's number lies below zero."""
    numbers = [cell["number"].replace("−", "-") for cell in verdicts[part]["cells"].values()]
    highs = [float(re.search(r"\[[-+.\d]+, ([-+.\d]+)\]", number)[1]) for number in numbers]
    return f"{sum(high < 0 for high in highs)} of {len(highs)}"


def _span(values: list[float]) -> str:
    return f"{min(values):+.3f} to {max(values):+.3f}".replace("-", "−")


def table(results: Path) -> list[str]:
    """The measured losses and gains in Markdown, one line per corpus."""
    corpora = measured(results)
    lines = [
        "| corpus | independent test texts | frozen loss | "
        + " | ".join(f"{n}: gain" for n in HEADS.values())
        + " |"
    ]
    lines.append("|---" * (3 + len(HEADS)) + "|")
    for name, of in corpora.items():
        gains = " | ".join(f"{of[regime]['gain'][0]:.3f}" for regime in HEADS)
        lines.append(f"| {name} | {of['R0']['documents']:,} | {of['R0']['loss']:.3f} | {gains} |")
    return lines


def drawing(results: Path) -> str:
    """The gains with their 95 % intervals as SVG, one panel per corpus."""
    corpora = measured(results)
    width, height = LEFT + PANEL * len(corpora) + 8, TOP + LINE * len(HEADS) + 44
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-labelledby="t" font-family="Helvetica, Arial, sans-serif" font-size="13">',
        '<title id="t">Gain over the frozen model, by corpus and head</title>',
        f"<style>{STYLE}</style>",
    ]
    for place, (regime, name) in enumerate(HEADS.items()):
        kind = ' class="ours" font-weight="bold"' if regime == "R4-best" else ""
        y = TOP + LINE * place + LINE // 2 + 8
        out.append(f'<text x="{LEFT - 12}" y="{y}" text-anchor="end"{kind}>{name}</text>')
    for column, (corpus, of) in enumerate(corpora.items()):
        out += _panel(LEFT + PANEL * column, corpus, of)
    label = "gain over the frozen model: nats per token of held-out text, 95 % interval"
    out.append(f'<text x="{(LEFT + width) / 2}" y="{height - 4}" text-anchor="middle">{label}</text>')
    return "\n".join([*out, "</svg>", ""])


def _panel(x: int, corpus: str, of: dict[str, dict]) -> list[str]:
    scale, bottom = (PANEL - 24) / MOST, TOP + LINE * len(HEADS) + 4
    out = []
    for line, word in enumerate(corpus.replace("-", " -", 1).split(" ") if len(corpus) > 15 else [corpus]):
        out.append(f'<text x="{x}" y="{16 + 14 * line}">{word}</text>')
    for tick in (0, 0.2, 0.4):
        at = x + tick * scale
        out.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 8}" y2="{bottom}"/>')
        out.append(f'<text class="soft" x="{at:.1f}" y="{bottom + 15}" text-anchor="middle">{tick:g}</text>')
    for place, regime in enumerate(HEADS):
        mean, low, high = (value * scale + x for value in of[regime]["gain"])
        y, kind = TOP + LINE * place + LINE // 2 + 4, "ours" if regime == "R4-best" else "other"
        out.append(
            f'<g class="{kind}"><line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke-width="3"/>'
        )
        out.append(f'<circle cx="{mean:.1f}" cy="{y}" r="5"/></g>')
    return out


def page(text: str, results: Path) -> str:
    """The README with the part between its marks made anew."""
    before, rest = text.split(START)
    after = rest.split(END, 1)[1]
    alt = "Gains of four heads over the frozen model on each corpus; the paper's head lies beside the LoRA of rank 4."
    figure = f'<p align="center"><img src="{FIGURE.as_posix()}" width="760" alt="{alt}"></p>'
    made = [START, *answer(results), "", figure, "", *table(results), END]
    return before + "\n".join(made) + after


def main() -> None:
    """Write both files."""
    with files.atomic(ROOT / FIGURE) as part:
        part.write_text(drawing(ROOT / "results"), encoding="utf-8")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (ROOT / "README.md").write_text(page(text, ROOT / "results"), encoding="utf-8")


if __name__ == "__main__":
    main()
