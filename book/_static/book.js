// Tables of executed cells: one header row, no empty header cells, and a frame that scrolls and takes the keyboard.
"use strict";

/** A folded table has no innerText. pandas prints the index's name in a header row of its own: move it into the first row. */
function mergeHeader(table) {
  const rows = table.tHead ? [...table.tHead.rows] : [];
  const name = rows.at(-1);
  if (rows.length >= 2 && [...name.cells].some((c) => !c.textContent.trim())) {
    const above = rows.at(-2).cells;
    const fits = above.length === name.cells.length && [...name.cells].every(
      (cell, i) => !cell.textContent.trim() || !above[i].textContent.trim());
    if (fits) {
      [...name.cells].forEach((cell, i) => {
        if (cell.textContent.trim()) above[i].innerHTML = cell.innerHTML;
      });
      name.remove();
    }
  }
  for (const cell of table.querySelectorAll("th")) {
    if (cell.textContent.trim()) continue;
    const plain = document.createElement("td");
    plain.className = cell.className;
    plain.colSpan = cell.colSpan;
    plain.rowSpan = cell.rowSpan;
    cell.replaceWith(plain);
  }
}

/** A frame around each table; what scrolls sideways can be reached and named. */
function frameTables(article) {
  for (const table of article.querySelectorAll("table")) {
    mergeHeader(table);
    const frame = document.createElement("div");
    frame.className = "table-frame";
    table.replaceWith(frame);
    frame.append(table);
  }
}

function markScrolling(article) {
  const boxes = ".table-frame, pre, .cell_output, mjx-container[display='true'], div.math";
  for (const box of article.querySelectorAll(boxes)) {
    const wide = box.scrollWidth > box.clientWidth + 1;
    if (wide) {
      box.tabIndex = 0;
      box.setAttribute("role", "group");
      box.setAttribute("aria-label", box.matches(".table-frame") ? "table, scrolls sideways" : "scrolls sideways");
    } else if (box.getAttribute("role") === "group") {
      ["tabindex", "role", "aria-label"].forEach((name) => box.removeAttribute(name));
    }
  }
}

document.addEventListener("DOMContentLoaded", () => {
  const article = document.querySelector(".bd-article");
  if (!article) return;
  frameTables(article);
  const mark = () => markScrolling(article);
  window.addEventListener("load", mark);
  new ResizeObserver(mark).observe(article);
  article.addEventListener("toggle", mark, true);
  article.addEventListener("click", () => setTimeout(mark, 300)); // a folded cell was opened
});

// Interactive pieces. A page has <div data-piece="NAME"> with its data as JSON and a static text, which stays where
// scripts do not run; with data-instead="ID" the piece takes the place of that figure's image.

const SVG = "http://www.w3.org/2000/svg";
const INK = "var(--pst-color-text-base)", PALE = "var(--pst-color-border)";
const BLUE = "var(--book-blue)", RED = "var(--book-red)", GREEN = "var(--book-green)";

/** An element with attributes, handlers (functions) and children; strings become text, never markup. */
function make(name, attributes = {}, ...children) {
  const element = SVG_NAMES.has(name) ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}
const SVG_NAMES = new Set(["svg", "g", "line", "circle", "rect", "polygon", "polyline", "text", "path"]);

/** A labelled slider; its value stands beside it. `change` is called with every new number. */
function slider(label, { min, max, step = 1, value, show = String }, change) {
  const input = make("input", { type: "range", min, max, step, value, "aria-label": label });
  const shown = make("output", {}, show(value));
  const set = (number) => {
    input.value = number;
    shown.textContent = show(Number(input.value));
    input.setAttribute("aria-valuetext", shown.textContent);
  };
  set(value);
  input.addEventListener("input", () => {
    set(input.value);
    change(Number(input.value));
  });
  return { row: make("label", { class: "piece-slider" }, make("span", {}, label), input, shown), set };
}

const round = (number, digits) => number.toFixed(digits).replace("-", "−");
const spoken = () => make("p", { class: "piece-says", "aria-live": "polite" });
const button = (label, click) => make("button", { type: "button", class: "piece-button", click }, label);

/** Two texts "a a …" and "b b …" of l tokens, padded to T: their means slide to the pad vector. */
function padding(box) {
  let length = 2, total = 8;
  const says = spoken(), points = [make("circle", { r: 6, fill: BLUE }), make("circle", { r: 6, fill: RED })];
  const place = (side, w) => [150 + side * 120 * w, 20 + 110 * w]; // w: the share of text
  const name = (x, y, anchor, text) => make("text", { x, y, "text-anchor": anchor }, text);
  const picture = make("svg", { viewBox: "0 0 300 150", role: "img", "aria-label": "Two points on lines to the pad vector" },
    make("polyline", { points: "30,130 150,20 270,130", fill: "none", stroke: PALE, "stroke-width": 2 }),
    make("circle", { cx: 150, cy: 20, r: 4, fill: INK }),
    name(162, 20, "start", "pad vector"), name(30, 148, "middle", "a"), name(270, 148, "middle", "b"), ...points);
  const draw = () => {
    const pad = total - length, w = length / total;
    [-1, 1].forEach((side, i) => {
      const [x, y] = place(side, w);
      points[i].setAttribute("cx", x);
      points[i].setAttribute("cy", y);
    });
    const alike = 4 * pad ** 2 / (length ** 2 + 4 * pad ** 2);
    const pull = 2 * pad / Math.sqrt(length ** 2 + 4 * pad ** 2);
    says.textContent = `${pad} of ${total} positions are padding. Cosine of the two texts: ${round(alike, 4)}; `
      + `of each to the pad vector: ${round(pull, 4)}.`;
  };
  const long = slider("tokens of each text", { min: 1, max: 16, value: length }, (n) => {
    length = n;
    if (total < n) rows.set(total = n);
    draw();
  });
  const rows = slider("padded length T", { min: 1, max: 64, value: total }, (n) => {
    total = Math.max(n, length);
    rows.set(total);
    draw();
  });
  box.append(make("div", { class: "piece-two" }, picture, make("div", {}, long.row, rows.row, says)));
  draw();
}

/** k-means on six points, step by step; the two centres move by dragging and by the arrow keys. */
function kmeans(box, { points, start }) {
  const X = (x) => 30 + x * 30, Y = (y) => 300 - y * 30, colours = [BLUE, RED];
  let centres, labels, rounds, next;
  const says = spoken();
  const dots = points.map(([x, y]) => make("circle", { cx: X(x), cy: Y(y), r: 6 }));
  const links = points.map(() => make("line", { "stroke-width": 1.5 }));
  const move = (k, x, y) => {
    centres[k] = [Math.min(11, Math.max(-0.5, x)), Math.min(9.5, Math.max(-0.5, y))];
    labels = next = null;
    rounds = 0;
    draw();
  };
  const handles = [0, 1].map((k) => {
    const handle = make("polygon", { points: "0,-11 11,0 0,11 -11,0", tabindex: 0, role: "button", class: "piece-handle" });
    handle.style.fill = colours[k];
    handle.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: [-0.5, 0], ArrowRight: [0.5, 0], ArrowUp: [0, 0.5], ArrowDown: [0, -0.5] }[event.key];
      if (!by) return;
      event.preventDefault();
      move(k, centres[k][0] + by[0], centres[k][1] + by[1]);
    });
    handle.addEventListener("pointerdown", (event) => handle.setPointerCapture(event.pointerId));
    handle.addEventListener("pointermove", (event) => {
      if (!handle.hasPointerCapture(event.pointerId)) return;
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(picture.getScreenCTM().inverse());
      move(k, (at.x - 30) / 30, (300 - at.y) / 30);
    });
    return handle;
  });
  const picture = make("svg", { viewBox: "0 0 390 330", role: "group", "aria-label": "Six points and two centres" },
    make("rect", { x: 1, y: 1, width: 388, height: 328, fill: "none", stroke: PALE }), ...links, ...dots, ...handles);
  const distance = ([a, b], [c, d]) => (a - c) ** 2 + (b - d) ** 2;
  const draw = () => {
    points.forEach((point, i) => {
      dots[i].style.fill = labels ? colours[labels[i]] : INK;
      const [x, y] = labels ? centres[labels[i]] : point;
      const ends = { x1: X(point[0]), y1: Y(point[1]), x2: X(x), y2: Y(y) };
      for (const [key, value] of Object.entries(ends)) links[i].setAttribute(key, value);
      links[i].style.stroke = labels ? colours[labels[i]] : "none";
    });
    handles.forEach((handle, k) => {
      const [x, y] = centres[k];
      handle.setAttribute("transform", `translate(${X(x)} ${Y(y)})`);
      handle.setAttribute("aria-label",
        `${["first", "second"][k]} centre at ${round(x, 2)}, ${round(y, 2)}; the arrow keys move it`);
    });
    const inertia = labels && points.reduce((sum, p, i) => sum + distance(p, centres[labels[i]]), 0);
    const where = centres.map(([x, y]) => `(${round(x, 2)}, ${round(y, 2)})`).join(" and ");
    says.textContent = `Centres at ${where}. `
      + (labels ? `Inertia ${round(inertia, 1)} after ${rounds} round${rounds === 1 ? "" : "s"}. ` : "")
      + (next === "done" ? "Nothing changes any more." : labels && next ? "Next: the centres move." : "Next: each point joins the nearest centre.");
  };
  const step = () => {
    if (next === "done") return;
    if (next === "centres") {
      const moved = centres.map((centre, k) => {
        const own = points.filter((_, i) => labels[i] === k);
        return own.length ? [0, 1].map((d) => own.reduce((sum, p) => sum + p[d], 0) / own.length) : centre;
      });
      const same = moved.every((centre, k) => distance(centre, centres[k]) < 1e-12);
      centres = moved;
      rounds += 1;
      next = same ? "done" : null;
    } else {
      labels = points.map((p) => (distance(p, centres[1]) < distance(p, centres[0]) ? 1 : 0)); // first of ties
      next = "centres";
    }
    draw();
  };
  const reset = () => {
    [centres, labels, rounds, next] = [start.map((c) => [...c]), null, 0, null];
    draw();
  };
  box.append(picture, make("p", { class: "piece-buttons" }, button("Step", step), button("Start again", reset)), says);
  reset();
}

/** L = f L_full + (1 − f) L_pad, with the published losses as starting points. */
function released(box, { full, published, uniform }) {
  const value = { f: full, full: 8, pad: 0 };
  let usual = false;
  const says = spoken();
  const nats = (n) => `${round(n, 2)} nats`;
  const bar = make("div", { class: "piece-bar" }), x = (n) => `${100 * Math.min(1, n / 15)}%`;
  const mark = make("span", { class: "piece-mark", style: `left: ${x(uniform)}` }, `ln V = ${round(uniform, 2)}`);
  const picture = make("div", { class: "piece-track", "aria-hidden": "true" }, bar, mark);
  const draw = () => {
    const loss = usual ? value.full : value.f * value.full + (1 - value.f) * value.pad;
    bar.style.width = x(loss);
    const share = loss > 0 ? value.f * value.full / loss : 0;
    says.textContent = usual
      ? `Every next token of the text is scored: ${round(loss, 2)} nats, whatever the padding costs.`
      : `The last position of each row is scored: L = ${round(loss, 4)} nats, `
        + `${round(100 * share, 0)} % of it from the ${round(100 * value.f, 1)} % of rows that are full.`;
  };
  const range = { min: 0, max: 15, step: 0.01 };
  const set = (key) => (n) => {
    value[key] = n;
    draw();
  };
  const sliders = {
    f: slider("share of full rows f", { min: 0, max: 1, step: 0.001, value: full, show: (n) => `${round(100 * n, 1)} %` }, set("f")),
    full: slider("loss of full rows", { ...range, value: value.full, show: nats }, set("full")),
    pad: slider("loss of padded rows", { ...range, value: 0, show: nats }, set("pad")),
  };
  const presets = Object.entries(published).map(([name, loss]) => button(`${name}: ${loss}`, () => {
    Object.assign(value, { f: full, pad: 0, full: loss / full });
    if (value.full > 15) Object.assign(value, { full: 10, pad: (loss - 10 * full) / (1 - full) });
    for (const [key, one] of Object.entries(sliders)) one.set(value[key]);
    draw();
  }));
  const scored = make("input", { type: "checkbox", change: (event) => {
    usual = event.target.checked;
    draw();
  } });
  box.append(...Object.values(sliders).map((one) => one.row), picture, says,
    make("p", { class: "piece-buttons" }, "as published: ", ...presets, make("label", {}, scored, " score every next token")));
  draw();
}

/** The claims by corpus: filters, and each cell opens its numbers. */
function claims(box, { corpora, parts, letters }) {
  const pick = (label, names) => {
    const select = make("select", { "aria-label": label, change: () => draw() },
      make("option", { value: "" }, label), ...names.map((name) => make("option", { value: name }, name)));
    return select;
  };
  const verdict = pick("any verdict", Object.keys(letters)), corpus = pick("any corpus", corpora);
  const says = spoken(), count = make("span", { "aria-live": "polite" }), body = make("tbody");
  const open = (part, where) => {
    const cell = part.cells[where];
    says.replaceChildren(make("strong", {}, `${part.part}, ${where}: ${cell.verdict}. `), `${part.says} `,
      make("br"), `Supported if: ${part.rule}`, make("br"), make("code", {}, cell.number),
      cell.detectable ? ` The smallest gain that would have been called supported: ${round(cell.detectable, 4)} nats.` : "",
      make("br"), "By itself: ", make("code", {}, "chameleon-lite claims --wide"));
    says.scrollIntoView({ block: "nearest" });
  };
  const draw = () => {
    const shown = parts.filter((part) => Object.entries(part.cells).some(([where, cell]) =>
      (!verdict.value || cell.verdict === verdict.value) && (!corpus.value || where === corpus.value))
      || (!verdict.value && !corpus.value));
    count.textContent = ` ${shown.length} of ${parts.length} parts`;
    body.replaceChildren(...shown.map((part) => make("tr", {},
      make("th", { scope: "row" }, `${part.part} ${part.says}`),
      ...corpora.map((where) => {
        const cell = part.cells[where];
        if (!cell) return make("td");
        const letter = letters[cell.verdict] || "?";
        const seen = { class: `verdict verdict-${letter === "?" ? "open" : letter}`, type: "button",
          "aria-label": `${part.part}, ${where}: ${cell.verdict}`, click: () => open(part, where) };
        return make("td", {}, make("button", seen, letter));
      }))));
  };
  box.append(make("p", { class: "piece-buttons" }, verdict, corpus, count),
    make("div", { class: "piece-board", tabindex: 0, role: "group", "aria-label": "claims by corpus" }, make("table", {}, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "part of a claim"),
      ...corpora.map((name) => make("th", { scope: "col" }, name)))), body)), says);
  says.textContent = "A letter opens its numbers: S supported, E equivalent, C contradicted, ? not decidable here.";
  draw();
}

/** Maps of texts: pointing at a text, or the arrow keys, show its beginning and bring out its cluster. */
function textMaps(box, { maps }) {
  const texts = []; // map by map, cluster by cluster, from the centre outwards: the order of the arrow keys
  const says = spoken();
  let chosen = -1;
  const choose = (index) => {
    const text = texts[chosen = (index + texts.length) % texts.length];
    texts.forEach(({ dot, where, cluster }, i) => {
      const near = where === text.where && cluster === text.cluster;
      dot.setAttribute("r", i === chosen ? 7 : near ? 4 : 3);
      dot.style.stroke = i === chosen ? INK : "";
      dot.style.opacity = near ? 1 : 0.55;
    });
    text.dot.parentNode.append(text.dot); // over its neighbours
    says.replaceChildren(make("strong", {}, `Cluster ${text.cluster}`), ` (map: ${text.where}). ${text.about}: “${text.text}”`);
    frame.setAttribute("aria-valuenow", chosen + 1);
    frame.setAttribute("aria-valuetext", `text ${chosen + 1} of ${texts.length}`);
  };
  const pictures = maps.map(({ name, grey, clusters }) => {
    const dots = clusters.flatMap(({ number, colour, points }) => points.map(([x, y, about, text]) => {
      const dot = make("circle", { cx: x, cy: y, r: 3, fill: colour });
      texts.push({ dot, x, y, about, text, where: name, cluster: number });
      return dot;
    }));
    const pale = grey.map(([x, y]) => `M${x} ${y}h.01`).join("");
    const picture = make("svg", { viewBox: "0 -18 220 236", "aria-hidden": "true" },
      make("path", { d: pale, stroke: PALE, "stroke-width": 3, "stroke-linecap": "round" }),
      make("g", {}, ...dots), make("text", { x: 110, y: -5, "text-anchor": "middle" }, name));
    const point = (event) => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(picture.getScreenCTM().inverse());
      const far = ({ where, x, y }) => (where === name ? Math.hypot(x - at.x, y - at.y) : Infinity);
      const near = texts.reduce((best, text, i) => (far(text) < far(texts[best] || {}) ? i : best), -1);
      if (near >= 0 && near !== chosen && far(texts[near]) < 10) choose(near);
    };
    picture.addEventListener("pointermove", point);
    picture.addEventListener("pointerdown", point);
    return picture;
  });
  const cluster = (by) => { // the first text of the next cluster, or of the one before
    const key = ({ where, cluster }) => `${where} ${cluster}`;
    const firsts = texts.flatMap((text, i) => (i === 0 || key(text) !== key(texts[i - 1]) ? [i] : []));
    const now = firsts.filter((i) => i <= chosen).length - 1;
    return firsts[(now + by + firsts.length) % firsts.length];
  };
  const frame = make("div", { class: "piece-maps", tabindex: 0, role: "slider", "aria-label": "Texts on maps",
    "aria-valuemin": 1, "aria-valuemax": texts.length, "aria-valuenow": 1,
    focus: () => chosen < 0 && choose(0),
    keydown: (event) => {
      const to = { ArrowRight: () => chosen + 1, ArrowLeft: () => chosen - 1, ArrowDown: () => cluster(1),
        ArrowUp: () => cluster(-1), Home: () => 0, End: () => -1 }[event.key];
      if (!to) return;
      event.preventDefault();
      choose(to());
    } }, ...pictures);
  says.textContent = "Point at a coloured text. Keys: left and right go from text to text, up and down from cluster to cluster.";
  box.append(frame, says);
}

document.addEventListener("DOMContentLoaded", () => {
  const pieces = { padding, kmeans, released, claims, map: textMaps };
  for (const box of document.querySelectorAll("[data-piece]")) {
    const data = box.querySelector("script[type='application/json']");
    const place = make("div", { class: "piece" });
    pieces[box.dataset.piece](place, data ? JSON.parse(data.textContent) : {});
    const image = box.dataset.instead && document.querySelector(`#${box.dataset.instead} img`);
    if (image) {
      image.classList.add("for-paper");
      image.after(place);
      (box.closest(".cell") || box).remove();
    } else {
      for (const child of box.children) child.classList.add("for-paper");
      box.append(place);
    }
  }
});

/** Accessible names without what is written on a button or with what an icon hides, and a list without items. */
function mendNames() {
  for (const icon of document.querySelectorAll("button[aria-label] :is(i[title], svg title)")) {
    const picture = icon.closest("svg");
    if (picture) {
      picture.setAttribute("aria-hidden", "true");
      ["role", "aria-labelledby"].forEach((name) => picture.removeAttribute(name));
      icon.remove();
    } else icon.removeAttribute("title");
  }
  for (const element of document.querySelectorAll("summary[aria-label], .search-button-field[aria-label]")) {
    const written = element.textContent.replace(/\s+/g, " ").trim(), name = element.getAttribute("aria-label");
    if (!name.startsWith(written)) element.setAttribute("aria-label", `${written} (${name})`);
  }
  document.querySelectorAll(".citation-list[role]").forEach((list) => list.removeAttribute("role"));
}
document.addEventListener("DOMContentLoaded", mendNames);
window.addEventListener("load", mendNames); // icons become pictures in between

// On paper nothing is folded.
window.addEventListener("beforeprint", () => {
  document.querySelectorAll("details:not([open])").forEach((folded) => {
    folded.open = true;
    folded.dataset.printed = "";
  });
});
window.addEventListener("afterprint", () => {
  document.querySelectorAll("details[data-printed]").forEach((folded) => {
    folded.removeAttribute("open");
    delete folded.dataset.printed;
  });
});
