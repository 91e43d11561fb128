/* The live figures of docs/explore.html. What they compute is what minivapo.vapo computes; a test compares the two. */
const data = JSON.parse($("data").textContent);

// ------------------------------------------------------------------------------------------- drawing

/** An SVG element; attributes that are null are left out. */
function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== undefined) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const place = (v) => v.toFixed(1);
const percent = (v, digits = 0) => `${(100 * v).toFixed(digits).replace("-", "−")} %`;

/** Round numbers from low to high, about so many. */
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9; i++) found.push(i * step);
  return found;
}

/**
 * Draws a chart into a figure's svg.
 *
 * @param id of the svg.
 * @param x, y {low, high, log, ticks, label, text}: an axis.
 * @param room at least so many characters for the names on the right: charts below one another share it.
 * @param marks [{kind: line | bars | dot | rule | band, …}], from the back to the front. A line with a `name` has it at its end.
 */
function draw(id, { x, y, height = 210, room = 0, marks }) {
  const root = $(id), width = Math.max(280, Math.round(root.parentNode.clientWidth) || 640);
  const names = marks.filter((m) => m.name && m.kind !== "rule");
  const left = 44, top = 24, bottom = height - 36, right = width - 14 - 6.9 * Math.max(room, ...names.map((m) => m.name.length));
  const scale = (axis, from, to) => {
    const f = axis.log ? Math.log : (v) => v;
    return (v) => from + ((to - from) * (f(v) - f(axis.low))) / (f(axis.high) - f(axis.low));
  };
  const across = scale(x, left, right), up = scale(y, bottom, top), nodes = [];
  const text = (axis) => axis.text || ((v) => number(v));
  for (const m of marks.filter((m) => m.kind === "band")) {
    nodes.push(svg("rect", { class: "band", x: place(across(m.from)), width: place(across(m.to) - across(m.from)), y: top, height: bottom - top }));
  }
  for (const v of y.ticks || ticks(y.low, y.high, 5)) {
    nodes.push(svg("path", { class: v === 0 ? "zero" : "rule", d: `M${left} ${place(up(v))}H${place(right)}` }));
    nodes.push(svg("text", { x: left - 6, y: place(up(v) + 4), "text-anchor": "end" }, text(y)(v)));
  }
  for (const v of x.ticks || ticks(x.low, x.high, width < 480 ? 4 : 8)) {
    nodes.push(svg("path", { class: "rule", d: `M${place(across(v))} ${bottom}v4` }));
    nodes.push(svg("text", { x: place(across(v)), y: bottom + 17, "text-anchor": "middle" }, text(x)(v)));
  }
  nodes.push(svg("text", { x: 0, y: 12 }, y.label), svg("text", { x: place((left + right) / 2), y: height - 2, "text-anchor": "middle" }, x.label));
  for (const m of marks) {
    const kind = `s${m.series ?? 0} ${m.class || ""}`;
    if (m.kind === "line") {
      nodes.push(svg("polyline", { class: `line ${kind}`, points: m.points.map(([a, b]) => `${place(across(a))},${place(up(b))}`).join(" ") }));
    } else if (m.kind === "bars") {
      nodes.push(svg("path", { class: `bar ${kind}`, d: m.points.map(([a, b]) => `M${place(across(a))} ${place(up(0))}V${place(up(b))}`).join("") }));
    } else if (m.kind === "dot") {
      nodes.push(svg("circle", { class: `dot ${kind}`, cx: place(across(m.x)), cy: place(up(m.y)), r: 5 }));
    } else if (m.kind === "rule") {
      nodes.push(svg("path", { class: `here ${kind}`, d: `M${place(across(m.x))} ${top}V${bottom}` }));
      const end = across(m.x) > right - 60; // where the name would leave the chart it stands before the line
      if (m.name) nodes.push(svg("text", { class: "strong", x: place(across(m.x) + (end ? -4 : 4)), y: top + 11, "text-anchor": end ? "end" : null }, m.name));
    }
  }
  // names stand at the ends of their lines, pushed apart where they would meet
  const ends = names.map((m) => ({ m, y: up(m.points ? m.points[m.points.length - 1][1] : m.y) })).sort((a, b) => a.y - b.y);
  for (let i = 1; i < ends.length; i++) ends[i].y = Math.max(ends[i].y, ends[i - 1].y + 15);
  const over = Math.max(0, ends.length ? ends[ends.length - 1].y - bottom : 0);
  for (const end of ends) nodes.push(svg("text", { class: `name s${end.m.series ?? 0}`, x: place(right + 6), y: place(end.y - over + 4) }, end.m.name));
  root.setAttribute("viewBox", `0 0 ${width} ${height}`);
  root.replaceChildren(...nodes);
}

/** The numbers behind a figure as a table: columns {name: list}; each cell holds its number in full. */
function table(id, columns) {
  const names = Object.keys(columns), rows = columns[names[0]].length;
  const cell = (name, i) => {
    const v = columns[name][i];
    return typeof v === "number" ? el("td", { class: "n", "data-column": name, "data-value": v }, number(v)) : el("td", {}, v);
  };
  $(id).replaceChildren(el("table", {},
    el("thead", {}, el("tr", {}, ...names.map((name) => el("th", { scope: "col", class: typeof columns[name][0] === "number" ? "n" : null }, name)))),
    el("tbody", {}, ...Array.from({ length: rows }, (_, i) => el("tr", {}, ...names.map((name) => cell(name, i)))))));
}

/** What a figure says in words, for everybody; numbers between *stars* are bold. */
function say(id, text) {
  $(id).replaceChildren(...text.split("*").map((part, i) => (i % 2 ? el("b", {}, part) : part)));
}

const figures = [];
/** Draws a figure now, when one of its controls moves, when the page changes its width, and when the theme changes. */
function figure(controls, render) {
  for (const id of controls) $(id).addEventListener("input", render);
  figures.push(render);
}

/** The number of a slider; `of` maps its place to it. It is shown beside it and told to screen readers. */
function dial(id, of = (v) => v, text = (v) => number(v)) {
  const v = of(Number($(id).value));
  $(id).setAttribute("aria-valuetext", text(v));
  $(`${id}-out`).textContent = text(v);
  $(`${id}-out`).dataset.value = v;
  return v;
}
const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`).value;

const points = (ys) => ys.map((y, t) => [t + 1, y]);
const rms = (a, b) => Math.sqrt(a.reduce((sum, v, i) => sum + (v - b[i]) ** 2, 0) / a.length);
const halfLife = (lam) => (lam >= 1 ? "never" : lam <= 0 ? "at once" : `after ${number(Math.log(0.5) / Math.log(lam))} tokens`);
const rewardsOf = (r) => r.tokens.map((_, t) => (t === r.tokens.length - 1 ? Number(r.correct) : 0));
const unit = { low: 0, high: 1, ticks: [0, 0.25, 0.5, 0.75, 1] };

// ------------------------------------------------------------------------------------------- 0 the value model and GAE

function advantages(r, values, lam) {
  return gae(rewardsOf(r), values, 1, lam);
}

function drawGae() {
  const r = data.responses[$("gae-response").value], lam = dial("gae-lam"), n = r.tokens.length;
  const estimate = advantages(r, r.values, lam), truth = advantages(r, r.truth, 0), all = advantages(r, r.values, 1);
  const grid = Array.from({ length: 101 }, (_, i) => i / 100);
  const errors = grid.map((l) => rms(advantages(r, r.values, l), truth));
  const best = errors.indexOf(Math.min(...errors)), error = rms(estimate, truth);
  // both strips of colour on one scale, wide enough for every λ
  const x = { advantages: estimate, trained: truth, monteCarlo: all, delta1: estimate };
  const scale = colourScale(QUANTITIES.advantage, x, rgb(css("surface")));
  $("gae-tokens").replaceChildren(...r.tokens.flatMap((token, t) => {
    const node = el("span", { class: "token" + (t === r.first_error ? " error" : ""), title: `estimate ${number(estimate[t])}, truth ${number(truth[t])}`, "data-value": estimate[t] }, token);
    const colour = scale.at(estimate[t]);
    node.style.background = `rgb(${colour})`;
    node.style.color = inkOn(colour);
    node.style.borderColor = `rgb(${scale.at(truth[t])})`;
    return [t === r.first_error ? el("span", { class: "flag" }, "first error") : "", node, " "];
  }));
  $("gae-prompt").textContent = r.prompt;
  $("gae-verdict").textContent = r.correct ? "right: reward 1" : "wrong: reward 0";
  const ramp = el("span", { class: "ramp", "aria-hidden": "true" });
  for (let i = 0; i < 11; i++) { const cell = el("i"); cell.style.background = `rgb(${scale.ramp(i / 10)})`; ramp.append(cell); }
  $("gae-legend").replaceChildren(el("span", {}, "blame ", ramp, " praise"), "Ground: what GAE estimates. Line under the word: the truth.");
  const axis = { low: 1, high: n, label: "token of the response" };
  const mark = r.first_error === null ? [] : [{ kind: "rule", x: r.first_error + 1, name: "first error" }];
  draw("gae-values", { x: axis, y: { low: Math.min(0, ...r.values), high: 1.05 * Math.max(...r.values, ...r.truth), label: "value V: chance of a right answer" }, height: 190, room: 6, marks: [...mark,
    { kind: "line", points: points(r.truth), series: 1, name: "true" }, { kind: "line", points: points(r.values), series: 0, name: "critic" }] });
  const reach = Math.max(...[...all, ...truth, ...advantages(r, r.values, 0)].map(Math.abs));
  draw("gae-advantages", { x: axis, y: { low: -reach, high: reach, label: "advantage Â of each token" }, height: 200, room: 6, marks: [...mark,
    { kind: "bars", points: points(truth), series: 1, name: "true" }, { kind: "line", points: points(estimate), series: 0, name: "GAE" }] });
  draw("gae-errors", { x: { ...unit, label: "λ" }, y: { low: 0, high: 1.08 * Math.max(...errors), label: "error of the advantages" }, height: 170, room: 6, marks: [
    { kind: "rule", x: r.lam, name: `α = ${data.alpha}`, class: "dashed" },
    { kind: "line", points: grid.map((l, i) => [l, errors[i]]), series: 0 }, { kind: "dot", x: lam, y: error, series: 0 }] });
  table("gae-table", { token: r.tokens, "V critic": r.values, "V true": r.truth, "Â by GAE": estimate, "A true": truth });
  $("gae-says").dataset.error = error;
  say("gae-says", `With λ = *${number(lam)}* half of the verdict's weight is gone *${halfLife(lam)}*. The advantages miss the true ones by *${number(error)}* (root mean square). `
    + `The least is *${number(errors[best])}*, at λ = *${number(grid[best])}*: below it the critic's own errors weigh more, above it one verdict falls on tokens that did nothing.`);
}
data.responses.forEach((r, i) => $("gae-response").append(el("option", { value: i }, `${r.correct ? "right" : "wrong"}, ${r.tokens.length} tokens`)));
figure(["gae-response", "gae-lam"], drawGae);

// ------------------------------------------------------------------------------------------- 1 value-pretraining

const FRAMES = Object.keys(data.film.policy).map(Number);
function drawFilm() {
  const r = data.responses[0], kind = chosen("film-start"), at = FRAMES[Number($("film-frame").value)];
  dial("film-frame", (i) => FRAMES[i], (v) => `${v} rollout${v === 1 ? "" : "s"}`);
  const film = data.film[kind], frame = film[at], earlier = FRAMES.filter((n) => n < at);
  draw("film-plot", { x: { low: 1, high: r.tokens.length, label: "token of the response" }, y: { low: -0.25, high: 1, ticks: [-0.25, 0, 0.25, 0.5, 0.75, 1], label: "value V" }, height: 240, marks: [
    { kind: "rule", x: r.first_error + 1, name: "first error" },
    ...earlier.map((n) => ({ kind: "line", points: points(film[n].values), series: 5, class: "thin" })),
    { kind: "line", points: points(r.truth), series: 1, name: "true" }, { kind: "line", points: points(frame.values), series: 0, name: "critic" }] });
  table("film-table", { token: r.tokens, "V critic": frame.values, "V true": r.truth });
  const error = rms(frame.values, r.truth);
  $("film-says").dataset.error = error;
  say("film-says", `After *${at}* rollout${at === 1 ? "" : "s"} the critic explains *${percent(frame.explained_variance)}* of the variance of the returns of ${data.fresh.toLocaleString("en")} responses that it did not learn from`
    + `${frame.explained_variance < 0 ? " (below zero: worse than saying the mean)" : ""}. On this response it misses the true values by *${number(error)}*.`);
}
for (const input of document.querySelectorAll('input[name="film-start"]')) input.addEventListener("input", drawFilm);
figure(["film-frame"], drawFilm);

// ------------------------------------------------------------------------------------------- 2 decoupled GAE

function drawTargets() {
  const r = data.responses[0], lam = dial("targets-lam"), n = r.tokens.length;
  const values = data.film["reward-model"][chosen("targets-critic")].values;
  const targets = advantages(r, values, lam).map((a, t) => a + values[t]);
  draw("targets-plot", { x: { low: 1, high: n, label: "token of the response" }, y: { low: -0.25, high: 0.75, ticks: [-0.25, 0, 0.25, 0.5, 0.75], label: "reward" }, height: 240, marks: [
    { kind: "rule", x: r.first_error + 1, name: "first error" },
    { kind: "line", points: points(r.truth), series: 1, name: "true V" }, { kind: "line", points: points(values), series: 5, name: "critic now" },
    { kind: "line", points: points(targets), series: 0, name: "its target" }] });
  table("targets-table", { token: r.tokens, "V critic": values, target: targets, "V true": r.truth });
  const kept = 1 - lam ** (n - 1);
  $("targets-says").dataset.kept = kept;
  say("targets-says", `The first token's target is *${number(targets[0])}*. *${percent(kept)}* of it is the critic's own opinion of later tokens, *${percent(1 - kept)}* is the verdict (${Number(r.correct)}). `
    + (lam === 1 ? "The verdict alone: noisy, but over many responses its mean is the truth." : "An opinion that is wrong on average stays wrong on average, however many responses it learns from."));
}
for (const input of document.querySelectorAll('input[name="targets-critic"]')) input.addEventListener("input", drawTargets);
figure(["targets-lam"], drawTargets);

// ------------------------------------------------------------------------------------------- 3 length-adaptive GAE

const power = (v) => 10 ** v;
function drawReach() {
  const length = Math.round(dial("reach-length", (v) => Math.round(power(v)), (v) => `${v} tokens`));
  const alpha = dial("reach-alpha", (v) => Number(power(v).toPrecision(2))), fixed = dial("reach-fixed");
  const lam = lengthAdaptiveLambda(length, alpha), shares = Array.from({ length: 101 }, (_, i) => i / 100);
  const weight = (l) => shares.map((s) => l ** ((length - 1) * (1 - s)));
  const curves = { "λ by length": weight(lam), "λ fixed": weight(fixed) };
  draw("reach-plot", { x: { ...unit, label: "place in the response: first token … last token", text: (v) => percent(v) }, y: { ...unit, label: "weight of the verdict in a token's advantage" }, height: 230, marks: [
    { kind: "line", points: shares.map((s, i) => [s, curves["λ fixed"][i]]), series: 5, name: "λ fixed", class: "dashed" },
    { kind: "line", points: shares.map((s, i) => [s, curves["λ by length"][i]]), series: 0, name: "λ by length" }] });
  table("reach-table", { place: shares.map((s) => percent(s)), ...curves });
  $("reach-says").dataset.lam = lam;
  say("reach-says", `λ = *${number(lam, 5)}*: a horizon of *${lam > 0 ? number(1 / (1 - lam)) : 1}* tokens, *${percent(lam > 0 ? 1 / (1 - lam) / length : 1 / length, 1)}* of the response. `
    + `The first token feels *${percent(curves["λ by length"][0], 2)}* of the verdict; with the fixed λ *${percent(curves["λ fixed"][0], 2)}*. `
    + (lam === 0 ? "This response is shorter than 1/α tokens: λ stops at 0, and only the critic speaks." : ""));
}
figure(["reach-length", "reach-alpha", "reach-fixed"], drawReach);

// ------------------------------------------------------------------------------------------- 4 token-level loss

/** Weight of each response's tokens in a batch's loss, divided by its count (eq. 6 and 7), times the tokens of the batch. */
function tokenWeights(lengths) {
  const tokens = lengths.reduce((a, b) => a + b, 0);
  return { tokens, token: lengths.map(() => 1), sample: lengths.map((l) => tokens / (l * lengths.length)) };
}

function drawWeights() {
  const ratio = dial("weights-ratio", (v) => v, (v) => `${v} ×`), real = chosen("weights-batch") === "real";
  $("weights-ratio").disabled = real;
  const lengths = real ? data.mini_batch.map(([l]) => l).sort((a, b) => a - b) : [20, 20 * ratio];
  const { tokens, ...kinds } = tokenWeights(lengths), high = Math.max(1.2, ...kinds.sample) * 1.05;
  for (const [kind, label] of [["token", "token-level"], ["sample", "sample-level"]]) {
    const root = $(`weights-${kind}`), width = Math.max(280, root.parentNode.clientWidth), height = 190, left = 34, top = 24, bottom = height - 24;
    const across = (v) => left + ((width - left - 6) * v) / tokens, up = (v) => bottom - ((bottom - top) * v) / high, nodes = [];
    let from = 0;
    lengths.forEach((l, i) => {
      const shape = { x: place(across(from)), y: place(up(kinds[kind][i])), width: place(across(from + l) - across(from)), height: place(bottom - up(kinds[kind][i])) };
      const series = real ? 0 : i ? 1 : 2;
      nodes.push(svg("rect", { ...shape, class: `fill s${series}` }), svg("rect", { ...shape, class: `edge s${series}` }));
      if (!real) nodes.push(svg("text", { class: `name s${series}`, x: place(Math.min(across(from) + 4, width - 60)), y: place(Math.min(up(kinds[kind][i]) - 6, bottom - 8)) }, i ? `${l} tokens` : `${l}`));
      from += l;
    });
    for (const v of ticks(0, high, 3)) nodes.unshift(svg("path", { class: v ? "rule" : "zero", d: `M${left} ${place(up(v))}H${width - 6}` }), svg("text", { x: left - 5, y: place(up(v) + 4), "text-anchor": "end" }, number(v)));
    nodes.push(svg("text", { x: 0, y: 12 }, `${label} loss: weight of one token`), svg("text", { x: place((left + width) / 2), y: height - 4, "text-anchor": "middle" }, "all tokens of the batch, response by response"));
    root.setAttribute("viewBox", `0 0 ${width} ${height}`);
    root.replaceChildren(...nodes);
  }
  table("weights-table", { "length in tokens": lengths, "token-level": kinds.token, "sample-level": kinds.sample });
  const gap = Math.max(...lengths) / Math.min(...lengths);
  say("weights-says", `${real ? `In these ${lengths.length} responses of the task the longest is` : "The long response is"} *${number(gap)}* times as long as the short${real ? "est" : " one"}. `
    + (gap === 1 ? "Both losses are the same." : `In the sample-level loss one of its tokens, and so one of its decisions, weighs *1/${number(gap)}* of one in the short${real ? "est" : ""} response. In the token-level loss all weigh the same.`));
}
for (const input of document.querySelectorAll('input[name="weights-batch"]')) input.addEventListener("input", drawWeights);
figure(["weights-ratio"], drawWeights);

// ------------------------------------------------------------------------------------------- 5 clip-higher

/** What a token adds to the objective at ratio ρ: min(ρ Â, clip(ρ) Â), and its slope in log ρ, which is the push on log π. */
function clipped(ratio, advantage, low, high) {
  const inside = Math.min(Math.max(ratio, 1 - low), 1 + high), value = Math.min(ratio * advantage, inside * advantage);
  return { value, push: value === ratio * advantage ? ratio * advantage : 0 };
}
/** Rollouts until a choice of probability p reaches 1/2 if each multiplies it by 1 + ε. */
const rolloutsToHalf = (p, high) => Math.max(0, Math.log(0.5 / p) / Math.log(1 + high));

function drawClip() {
  const low = dial("clip-low"), high = dial("clip-high"), p = dial("clip-p", (v) => Number(power(v).toPrecision(2)));
  const ratios = Array.from({ length: 120 }, (_, i) => (i + 1) / 50), side = (a) => ratios.map((v) => clipped(v, a, low, high));
  const good = side(1), bad = side(-1);
  draw("clip-objective", { x: { low: 0, high: 2.4, ticks: [0, 0.5, 1, 1.5, 2], label: "ratio ρ = π now / π when sampled" }, y: { low: -2.4, high: 2.4, label: "objective of one token" }, height: 250, marks: [
    { kind: "band", from: 1 - low, to: 1 + high }, { kind: "line", points: ratios.map((v, i) => [v, good[i].value]), series: 0, name: "Â = 1" },
    { kind: "line", points: ratios.map((v, i) => [v, bad[i].value]), series: 1, name: "Â = −1" }] });
  const needed = { [`ε = ${number(high)}`]: rolloutsToHalf(p, high), "ε = 0.2 ": rolloutsToHalf(p, 0.2) }, last = Math.max(1, ...Object.values(needed)) * 1.05;
  const climb = (e) => Array.from({ length: 61 }, (_, i) => (i * last) / 60).map((k) => [k, Math.min(0.5, p * (1 + e) ** k)]);
  draw("clip-climb", { x: { low: 0, high: last, label: "rollouts" }, y: { low: 0.0005, high: 1, log: true, ticks: [0.001, 0.01, 0.1, 0.5], label: "probability of the rare right choice" }, height: 250, marks: [
    { kind: "line", points: climb(0.2), series: 5, class: "dashed" }, { kind: "line", points: climb(high), series: 0 },
    ...Object.entries(needed).map(([name, k], i) => ({ kind: "dot", x: k, y: 0.5, series: i ? 5 : 0 }))] });
  table("clip-table", { "ratio ρ": ratios, "objective, Â = 1": good.map((v) => v.value), "push, Â = 1": good.map((v) => v.push), "objective, Â = −1": bad.map((v) => v.value), "push, Â = −1": bad.map((v) => v.push) });
  const [mine, usual] = Object.values(needed);
  $("clip-says").dataset.needed = mine;
  say("clip-says", `A token whose ratio is above *${number(1 + high)}* gets no more praise; one below *${number(1 - low)}* no more blame. So a right choice of probability *${number(p)}* can at most reach `
    + `*${number(p * (1 + high))}* in one rollout, if the clip is all that moves it, and needs *${number(Math.ceil(mine))}* rollouts to reach ½ (blue); with the usual 0.2 *${number(Math.ceil(usual))}* (grey, dashed).`);
}
figure(["clip-low", "clip-high", "clip-p"], drawClip);

// ------------------------------------------------------------------------------------------- 6 positive-example loss

/** Push on log π of each token of a right response, times the tokens of the batch: from L_PPO with a perfect first guess, and from μ L_NLL. */
const pushes = (p, mu) => ({ policy: 1 - p, positive: mu / p });

function drawPositive() {
  const mu = dial("positive-mu"), p = dial("positive-p", (v) => Number(power(v).toPrecision(2)), (v) => percent(v, v < 0.01 ? 2 : 1));
  const rates = Array.from({ length: 90 }, (_, i) => 10 ** (-3 + i / 30)), both = rates.map((v) => pushes(v, mu)), here = pushes(p, mu);
  const share = both.map(({ policy, positive }) => positive / (policy + positive)), bounds = [0.01, 200], inside = (v) => Math.min(bounds[1], Math.max(bounds[0], v));
  const line = (kind, series, name) => ({ kind: "line", points: rates.map((v, i) => [v, inside(both[i][kind])]), series, name });
  draw("positive-plot", { x: { low: 0.001, high: 1, log: true, ticks: [0.001, 0.01, 0.1, 1], text: (v) => percent(v, v < 0.01 ? 1 : 0), label: "pass rate: share of responses that are right" },
    y: { low: bounds[0], high: bounds[1], log: true, ticks: [0.01, 0.1, 1, 10, 100], label: "push on each token of a right response" }, height: 250, marks: [
      { kind: "rule", x: p }, line("policy", 1, "policy loss"), line("positive", 0, "LM loss"),
      { kind: "dot", x: p, y: inside(here.policy), series: 1 }, { kind: "dot", x: p, y: inside(here.positive), series: 0 }] });
  table("positive-table", { "pass rate": rates, "policy loss": both.map((v) => v.policy), "LM loss": both.map((v) => v.positive), share });
  $("positive-says").dataset.policy = here.policy;
  $("positive-says").dataset.positive = here.positive;
  say("positive-says", `At a pass rate of *${percent(p, p < 0.01 ? 2 : 1)}* the policy loss pushes each token of a right response up with *${number(here.policy)}*, the LM loss with μ/p = *${number(here.positive)}*: `
    + `*${percent(here.positive / (here.policy + here.positive || 1))}* of the push. And the LM loss is not clipped.`);
}
figure(["positive-mu", "positive-p"], drawPositive);

// ------------------------------------------------------------------------------------------- 7 group sampling

/** Verdicts of each prompt's samples: bit i of the number is sample i. */
const verdicts = data.groups.map((text) => { const n = BigInt("0x" + text); return Array.from({ length: 64 }, (_, i) => Number((n >> BigInt(i)) & 1n)); });
/** Share of the groups of n among 64 samples, r of them right, that hold both verdicts. */
function mixedShare(r, n) {
  const alike = (k) => { let product = 1; for (let i = 0; i < n; i++) product *= (k - i) / (64 - i); return Math.max(0, product); };
  return 1 - alike(r) - alike(64 - r);
}

function drawGroups() {
  const n = dial("groups-n", (v) => 2 ** v, (v) => `${v}`), prompts = 256 / n, root = $("groups-plot");
  const width = Math.max(280, root.parentNode.clientWidth), columns = width < 560 ? 16 : 32, gap = 3;
  const size = (width - 2) / columns, nodes = [], side = Math.min(size - gap, 18), rows = 256 / columns;
  let mixed = 0;
  for (let g = 0; g < prompts; g++) {
    const group = verdicts[g].slice(0, n), both = group.includes(0) && group.includes(1);
    mixed += both;
    group.forEach((right, i) => {
      const k = g * n + i, x = 1 + (k % columns) * size, y = 2 + Math.floor(k / columns) * (side + gap + 4);
      const alone = n === 1 || (i === n - 1), stretch = alone || k % columns === columns - 1 ? side + gap / 2 : size;
      if (both) nodes.unshift(svg("rect", { class: "mixed", x: place(x - gap / 2), y: place(y - gap / 2), width: place(stretch + gap / 2), height: place(side + gap) }));
      nodes.push(svg("rect", { class: right ? "hit" : "miss", x: place(x + 0.5), y: place(y + 0.5), width: place(side - 1), height: place(side - 1), rx: 2 }));
    });
  }
  root.setAttribute("viewBox", `0 0 ${width} ${Math.ceil(rows * (side + gap + 4) + 4)}`);
  root.replaceChildren(...nodes);
  const sizes = [1, 2, 4, 8, 16, 32, 64], expected = sizes.map((m) => verdicts.reduce((sum, v) => sum + mixedShare(v.reduce((a, b) => a + b), m), 0) / verdicts.length);
  table("groups-table", { "responses a prompt": sizes, prompts: sizes.map((m) => 256 / m), "share with both verdicts": expected });
  $("groups-says").dataset.mixed = mixed;
  say("groups-says", `256 responses: *${prompts}* prompts with *${n}* response${n > 1 ? "s" : ""} each. *${mixed}* of the groups have both verdicts (shaded); measured over all 256 prompts *${percent(expected[sizes.indexOf(n)])}* have. `
    + `GRPO learns from those alone. With a critic every response is compared with V, so all 256 teach, but they ask only *${prompts}* question${prompts > 1 ? "s" : ""}.`);
}
figure(["groups-n"], drawGroups);

// ------------------------------------------------------------------------------------------- all of them

const drawAll = () => figures.forEach((render) => render());
drawAll(); // at once, not when they come into view: so they are there in print
themed.push(drawAll);
let seen = document.documentElement.clientWidth;
addEventListener("resize", () => { if (seen !== document.documentElement.clientWidth) { seen = document.documentElement.clientWidth; drawAll(); } });
document.documentElement.dataset.ready = "yes";
