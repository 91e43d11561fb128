/* The page. All text that came out of a run goes through textContent; nothing is ever parsed as HTML. */
(async () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);

  /** An element with attributes and children; strings become text nodes. */
  function el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (value === false || value === null || value === undefined) continue;
      if (key === "class") node.className = value;
      else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else node.setAttribute(key, value === true ? "" : value);
    }
    node.append(...children.filter((c) => c !== null && c !== undefined).map((c) => (c instanceof Node ? c : String(c))));
    return node;
  }

  const number = (v, digits = 3) =>
    !Number.isFinite(v) ? "–"
      : v === 0 ? "0"
      : Math.abs(v) >= 1e5 || Math.abs(v) < 1e-4 ? v.toExponential(2).replace("-", "−")
      : Number(v.toPrecision(digits)).toLocaleString("en", { maximumSignificantDigits: digits, useGrouping: false }).replace("-", "−");
  const percent = (v) => (Number.isFinite(v) ? (100 * v).toFixed(1) + " %" : "–");
  const seconds = (v) => (!Number.isFinite(v) ? "–" : v < 120 ? number(v) + " s" : v < 7200 ? number(v / 60) + " min" : number(v / 3600) + " h");
  const setting = (v) => (v === undefined || v === null ? "–" : typeof v === "boolean" ? (v ? "yes" : "no") : String(v));

  // ------------------------------------------------------------------------------------------- colours
  const PALETTE = [
    ["#0072b2", "#56b4e9"], ["#d55e00", "#ff9a4d"], ["#00795a", "#35c99b"], ["#a8487f", "#e89ac7"],
    ["#7a5f00", "#e8c94a"], ["#444c56", "#c3cad3"], ["#3b3bb3", "#a3a3ff"], ["#8c2d19", "#ff8f7a"],
  ]; // Okabe-Ito, darkened or lightened until lines read on the page
  const DASHES = ["solid", "dash", "dot", "dashdot"];
  const probe = el("i", { hidden: true });
  document.body.append(probe);
  function css(name) {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  }
  const rgb = (text) => text.match(/[\d.]+/g).slice(0, 3).map(Number);
  const isDark = () => luminance(rgb(css("surface"))) < 0.2;
  const lineColour = (i) => PALETTE[i % PALETTE.length][isDark() ? 1 : 0];
  const lineDash = (i) => DASHES[Math.floor(i / PALETTE.length) % DASHES.length];
  const swatches = [];
  function swatch(i) {
    const node = el("span", { class: "swatch", "aria-hidden": "true" });
    node.style.borderTopStyle = lineDash(i) === "solid" ? "solid" : lineDash(i) === "dot" ? "dotted" : "dashed";
    const paint = () => (node.style.borderTopColor = lineColour(i));
    paint();
    swatches.push(paint);
    return node;
  }

  const themed = []; // what to do again when the theme changes
  const remembered = (() => { try { return localStorage.getItem("minivapo-theme"); } catch { return null; } })();
  function setTheme(theme) {
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    $("theme").value = theme || "auto";
    swatches.forEach((paint) => paint());
    themed.forEach((f) => f());
  }
  $("theme").addEventListener("change", (event) => {
    try { localStorage.setItem("minivapo-theme", event.target.value); } catch { /* a page from disk may have no storage */ }
    setTheme(event.target.value);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(document.documentElement.dataset.theme || "auto"));
  setTheme(remembered || "auto");

  // ------------------------------------------------------------------------------------------- summary
  const groups = data.groups, runCount = groups.reduce((n, g) => n + g.runs.length, 0);
  const groupLabel = (g) => g.name + (g.runs.length > 1 ? ` (${g.runs.length} seeds)` : "");
  {
    const one = groups.length === 1 ? groups[0] : null;
    const first = groups[0].runs[0];
    document.title = (one ? one.name : `${groups.length} settings`) + " · MiniVAPO report";
    $("summary-title").textContent = one ? one.name : groups.length <= 4 ? groups.map((g) => g.name).join(" · ") : `${groups.length} settings compared`;
    const tasks = [...new Set(groups.flatMap((g) => g.runs.map((r) => r.task)).filter(Boolean))];
    $("what").textContent = [
      `${runCount} run${runCount > 1 ? "s" : ""}`,
      tasks.length ? `task ${tasks.join(", ")}` : null,
      runCount === 1 && first.model ? `model ${first.model}` : null,
      runCount === 1 && first.seed !== null ? `seed ${first.seed}` : null,
      first.commit ? `commit ${String(first.commit).slice(0, 10)}` : null,
    ].filter(Boolean).join(" · ");
    for (const text of data.notices) $("notices").append(el("p", { class: "notice" }, text));

    const band = (s, show) => (s ? el("span", {}, show(s.mean), s.n > 1 ? el("span", { class: "range" }, ` ${show(s.low)} – ${show(s.high)}`) : null) : "–");
    if (one) {
      const s = one.summary;
      const tile = (label, figure, note) => $("tiles").append(el("div", { class: "tile" }, el("div", { class: "label" }, label), el("div", { class: "figure" }, figure), el("div", { class: "note" }, note)));
      const seeds = (v) => (v && v.n > 1 ? `${v.n} seeds` : "");
      const points = s.accuracy && s.accuracy_before ? 100 * (s.accuracy.mean - s.accuracy_before.mean) : NaN;
      const change = Number.isFinite(points) ? `${points < 0 ? "−" : "+"}${Math.abs(points).toFixed(1)} points from ${percent(s.accuracy_before.mean)}` : s.accuracy_before ? `base policy ${percent(s.accuracy_before.mean)}` : "";
      tile("Held-out accuracy", s.accuracy ? percent(s.accuracy.mean) : "–", s.accuracy ? change : change || "evaluated at the end");
      tile("Training accuracy", s.training ? percent(s.training.mean) : "–", "last step");
      tile("Response length", s.length ? number(s.length.mean) : "–", "tokens, last step");
      tile("Explained variance", s.explained ? number(s.explained.mean, 2) : "–", s.explained ? "of the value model" : "no value model");
      tile("Entropy", s.entropy ? number(s.entropy.mean, 2) : "–", "nats per token");
      tile("Steps", String(s.steps), [s.seconds ? seconds(s.seconds.mean) : null, seeds(s.training)].filter(Boolean).join(", "));
    } else {
      const head = ["", "steps", "held-out accuracy", "base policy", "training accuracy", "length", "entropy", "explained variance", "time"];
      $("summary-table").append(el("table", {}, el("thead", {}, el("tr", {}, ...head.map((h, i) => el("th", { scope: "col", class: i ? "n" : null }, h)))),
        el("tbody", {}, ...groups.map((g, i) => {
          const s = g.summary;
          const cells = [s.steps, band(s.accuracy, percent), band(s.accuracy_before, percent), band(s.training, percent), band(s.length, number), band(s.entropy, number), band(s.explained, (v) => number(v, 2)), s.seconds ? seconds(s.seconds.mean) : "–"];
          return el("tr", {}, el("th", { scope: "row" }, swatch(i), groupLabel(g)), ...cells.map((c) => el("td", { class: "n" }, c)));
        }))));
    }
  }

  // ------------------------------------------------------------------------------------------- evaluations
  if (data.evaluations.length) {
    $("evaluations").hidden = $("evaluations-link").hidden = false;
    const head = ["run", "task", "accuracy", "95 % interval", "pass@k", "problems × samples", "temperature", "top-p", "mean length", "truncated", "verifier errors", "sampler", "file"];
    $("evaluations-table").append(el("table", {}, el("thead", {}, el("tr", {}, ...head.map((h) => el("th", { scope: "col" }, h)))),
      el("tbody", {}, ...data.evaluations.map((e) => {
        const s = e.settings, curve = Object.entries(e.pass_at).map(([k, v]) => `@${k} ${percent(v)}`).join(", ");
        const cells = [s.task, percent(e.accuracy), `${percent(e.interval[0])} – ${percent(e.interval[1])}`, curve, `${s.problems} × ${s.samples}`, s.temperature, s.top_p, `${number(e.length)} of ${s.max_new_tokens}`, percent(e.truncated), percent(e.verifier_errors), s.sampler, e.file];
        return el("tr", {}, el("th", { scope: "row" }, e.run), ...cells.map((c) => el("td", {}, String(c))));
      }))));
  }

  // ------------------------------------------------------------------------------------------- settings
  function settingsTable(names, columns, heads) {
    return el("div", { class: "scroll" }, el("table", {},
      el("thead", {}, el("tr", {}, ...["setting", ...heads, "what it is"].map((h) => el("th", { scope: "col" }, h)))),
      el("tbody", {}, ...names.map((name, r) => el("tr", {}, el("th", { scope: "row", class: "mono" }, name),
        ...columns.map((column) => el("td", { class: "mono" }, setting(column[r]))), el("td", { class: "hint" }, data.fields[name] || ""))))));
  }
  {
    const body = $("settings-body");
    if (groups.length > 1) {
      body.append(el("p", { class: "lead" }, data.differences.length ? "What differs between the lines:" : "The lines differ in nothing but their seeds."));
      const rows = data.differences;
      if (rows.length) body.append(settingsTable(rows.map((r) => r[0]), groups.map((_, i) => rows.map((r) => r[1][i])), groups.map((g) => g.name)));
    } else {
      const g = groups[0], preset = g.runs[0].preset;
      body.append(el("p", { class: "lead" }, g.changes.length ? `Changed from the preset ${preset}:` : `Exactly the preset ${preset || "given"}.`));
      if (g.changes.length) body.append(settingsTable(g.changes.map((c) => c[0]), [g.changes.map((c) => c[1]), g.changes.map((c) => c[2])], ["preset", "this run"]));
    }
    const names = [...new Set(groups.flatMap((g) => Object.keys(g.settings)))];
    body.append(el("details", { class: "all" }, el("summary", {}, `All ${names.length} settings`),
      settingsTable(names, groups.map((g) => names.map((n) => g.settings[n])), groups.length > 1 ? groups.map((g) => g.name) : ["value"])));
    const rows = groups.flatMap((g) => g.runs.map((r) => [r.name, g.name, r.seed, String(r.commit || "–").slice(0, 10), Object.entries(r.versions || {}).map(([k, v]) => `${k} ${v}`).join(", ") || "–"]));
    body.append(el("details", { class: "all" }, el("summary", {}, "Runs, commits and versions"), el("div", { class: "scroll" }, el("table", {},
      el("thead", {}, el("tr", {}, ...["run", "line", "seed", "commit", "versions"].map((h) => el("th", { scope: "col" }, h)))),
      el("tbody", {}, ...rows.map((r) => el("tr", {}, ...r.map((c) => el("td", {}, setting(c))))))))));
  }

  // ------------------------------------------------------------------------------------------- curves
  const hidden = new Set();
  const charts = []; // {spec, figure, plot, seen, drawn}
  let plotly = null;
  const byName = new Map(data.charts.filter((c) => c.axis === "step").map((c) => [c.name, c]));

  /** Where on the chosen horizontal axis the steps of a group lie; between known points it interpolates. */
  function along(axis, group, steps) {
    const known = axis === "step" ? null : byName.get(axis)?.series.find((s) => s.group === group);
    if (!known) return axis === "step" ? steps : steps.map(() => null);
    const xs = [0, ...known.x.filter((x) => x > 0)], start = known.x[0] === 0 ? known.mean[0] : 0;
    const ys = [start, ...known.mean.filter((_, i) => known.x[i] > 0)];
    return steps.map((step) => {
      const i = xs.findIndex((x) => x >= step);
      if (i < 0) return ys[ys.length - 1];
      if (xs[i] === step || i === 0) return ys[i];
      return ys[i - 1] + ((ys[i] - ys[i - 1]) * (step - xs[i - 1])) / (xs[i] - xs[i - 1]);
    });
  }

  function layout(extra) {
    const axis = { gridcolor: css("line"), zerolinecolor: css("line"), linecolor: css("line"), tickfont: { color: css("soft"), size: 11 }, automargin: true, title: { font: { color: css("soft"), size: 11 }, standoff: 6 } };
    return {
      margin: { l: 8, r: 8, t: 8, b: 8 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "x unified",
      hoverlabel: { bgcolor: css("surface"), bordercolor: css("line"), font: { color: css("text"), size: 12 } }, font: { family: "system-ui, sans-serif", color: css("text") },
      ...extra, xaxis: { ...axis, zeroline: false, ...extra.xaxis, title: { ...axis.title, text: extra.xaxis?.text } }, yaxis: { ...axis, ...extra.yaxis, title: { ...axis.title, text: extra.yaxis?.text } },
    };
  }
  const PLOT = { displayModeBar: false, responsive: true };

  function drawChart(chart) {
    if (!plotly || !chart.seen) return;
    const axis = chart.spec.axis === "pretrain" ? "step" : $("axis").value;
    const share = chart.spec.unit === "share" && !chart.spec.name.startsWith("value/");
    const traces = [];
    for (const s of chart.spec.series) {
      if (hidden.has(s.group)) continue;
      const colour = lineColour(s.group), x = along(axis, s.group, s.x), name = groups[s.group].name;
      if (s.low) {
        const [r, g, b] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
        const edge = { x, mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
        traces.push({ ...edge, y: s.low }, { ...edge, y: s.high, fill: "tonexty", fillcolor: `rgba(${r},${g},${b},0.18)` });
      }
      const few = s.x.length <= 12;
      const text = s.x.map((_, i) => (s.low ? `${number(s.low[i])} – ${number(s.high[i])}, ${s.count[i]} of ${groups[s.group].runs.length} seeds` : ""));
      traces.push({ x, y: s.mean, name: plain(name), mode: few ? "lines+markers" : "lines", line: { color: colour, width: 2, dash: lineDash(s.group) }, marker: { size: 6, color: colour },
        text, hovertemplate: (share ? "%{y:.1%}" : "%{y:.4~g}") + (s.low ? " (%{text})" : "") + "<extra>%{fullData.name}</extra>" });
    }
    const names = { step: chart.spec.axis === "pretrain" ? "rollout of the fixed policy" : "step", samples: "responses sampled", "time/cpu_seconds": "processor seconds" };
    plotly.react(chart.plot, traces, layout({ xaxis: { text: names[axis] }, yaxis: share ? { tickformat: "~%", rangemode: "tozero" } : { tickformat: "~g" } }), PLOT);
    chart.plot.dataset.drawn = "yes";
  }
  /** plotly reads a little HTML in names; a preset's name must stay text. */
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const chart = charts.find((c) => c.figure === entry.target);
      if (entry.isIntersecting && !chart.seen) { chart.seen = true; drawChart(chart); }
    }
  }, { rootMargin: "400px" });

  function figureOf(spec) {
    const plot = el("div", { class: "plot", role: "img", "aria-label": `${spec.title}: curve; the numbers are in the table below it` });
    const several = spec.series.length > 1;
    const best = (s) => (spec.better === "lower" ? Math.min(...s.mean) : Math.max(...s.mean));
    const table = el("table", {}, el("thead", {}, el("tr", {}, ...["", "first", ...(spec.better ? ["best"] : ["highest"]), "last"].map((h, i) => el("th", { scope: "col", class: i ? "n" : null }, h)))),
      el("tbody", {}, ...spec.series.map((s) => el("tr", {}, el("th", { scope: "row" }, several ? swatch(s.group) : null, groups[s.group].name), ...[s.mean[0], best(s), s.mean[s.mean.length - 1]].map((v) => el("td", { class: "n" }, number(v)))))));
    const figure = el("figure", { "data-metric": spec.name },
      el("h3", {}, el("span", {}, spec.title), el("span", { class: "unit" }, spec.unit)), plot,
      el("figcaption", {}, el("p", {}, spec.meaning), spec.bad ? el("p", { class: "bad" }, spec.bad) : null,
        el("details", {}, el("summary", {}, el("code", {}, spec.name), " in numbers"), table)));
    charts.push({ spec, figure, plot, seen: false });
    observer.observe(figure);
    return figure;
  }
  {
    const root = $("charts");
    const headline = data.charts.filter((c) => c.headline);
    root.append(el("div", { class: "grid" }, ...headline.map(figureOf)));
    for (const heading of [...new Set([...data.headings, ...data.charts.map((c) => c.heading)])]) {
      const specs = data.charts.filter((c) => c.heading === heading && !c.headline);
      if (specs.length) root.append(el("details", { open: heading === data.headings.find((h) => /pretraining/.test(h)) }, el("summary", {}, `${heading} (${specs.length})`), el("div", { class: "grid" }, ...specs.map(figureOf))));
    }
    groups.forEach((g, i) => {
      const box = el("input", { type: "checkbox", checked: true, onchange: (event) => { event.target.checked ? hidden.delete(i) : hidden.add(i); charts.forEach(drawChart); } });
      $("legend").append(el("label", {}, groups.length > 1 ? box : null, swatch(i), groupLabel(g)));
    });
    $("curves-lead").textContent = (groups.some((g) => g.runs.length > 1) ? "A line is the mean over seeds, its band reaches from the lowest to the highest seed. " : "") + "Under each curve stands what it measures and which values are a bad sign.";
    $("axis").addEventListener("change", () => charts.forEach(drawChart));
    $("find").addEventListener("input", (event) => {
      const wanted = event.target.value.trim().toLowerCase();
      for (const c of charts) c.figure.hidden = wanted !== "" && !(c.spec.name + " " + c.spec.title).toLowerCase().includes(wanted);
      for (const d of root.querySelectorAll(":scope > details")) { d.hidden = ![...d.querySelectorAll("figure")].some((f) => !f.hidden); if (wanted) d.open = !d.hidden; }
    });
    themed.push(() => charts.forEach(drawChart));
  }

  // ------------------------------------------------------------------------------------------- explorer
  const runs = data.samples.map((r, i) => ({ ...r, index: i })).filter((r) => r.rows.length);
  const state = { run: null, sample: null, token: 0, colour: "advantage", x: null };
  const verdict = (s) => el("span", { class: s.correct ? "right" : "wrong" }, s.correct ? "✓ right" : "✗ wrong");
  const text = (tokens) => tokens.join(tokens.some((t) => /\s/.test(t)) ? "" : " ");
  const shown = (token) => (token === "" ? "∅" : token.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/[\u0000-\u001f\u007f]/g, "�"));
  const clipText = (t, n) => (t.length > n ? t.slice(0, n - 1) + "…" : t);

  if (!runs.length) { $("explorer-empty").hidden = false; $("explorer-body").hidden = true; }

  /** Everything the explorer shows of a sample under the current λ and γ. */
  function compute() {
    const s = state.sample, gamma = Number($("x-gamma-n").value), T = s.tokens.length;
    const hasValues = Array.isArray(s.values), c = state.run.config;
    const adaptive = $("x-adaptive").checked;
    const lam = adaptive ? lengthAdaptiveLambda(T, Number($("x-alpha-n").value)) : Number($("x-lam-n").value);
    const rewards = s.rewards || s.tokens.map(() => 0), g0 = s.gamma ?? c.gamma ?? 1;
    const x = { sample: s, lam, gamma, trained: s.advantages, low: c.reward_wrong ?? 0, high: c.reward_correct ?? 1 };
    x.advantages = hasValues ? gae(rewards, s.values, gamma, lam) : s.advantages;
    x.delta = hasValues ? tdErrors(rewards, s.values, gamma) : null;
    x.delta1 = hasValues ? tdErrors(rewards, s.values, g0) : null;
    x.monteCarlo = hasValues ? gae(rewards, s.values, g0, 1) : null;
    // after the step π/π_old, where the run kept it; else how far the learner's policy is from the sampler's
    const [above, below] = s.new_logprobs ? [s.new_logprobs, s.old_logprobs] : [s.old_logprobs, s.logprobs];
    x.ratio = above && below ? above.map((v, t) => Math.exp(v - below[t])) : null;
    x.rewards = rewards;
    return x;
  }

  function chooseRun(run, sample) {
    state.run = run;
    $("x-run").value = run.index;
    $("x-sample").replaceChildren(...run.rows.map((s, i) => el("option", { value: i }, `step ${s.step} · ${s.correct ? "✓" : "✗"} · ${s.tokens.length} tokens · ${clipText(s.prompt ?? "", 70)}`)));
    chooseSample(sample);
  }

  function chooseSample(index) {
    state.sample = state.run.rows[index];
    state.index = index;
    $("x-sample").value = index;
    const s = state.sample;
    $("x-prompt").textContent = s.prompt ?? "";
    const fact = (key, ...value) => el("span", {}, el("span", { class: "k" }, key + " "), ...value);
    $("x-facts").replaceChildren(verdict(s), fact("right answer", el("b", { class: "mono" }, s.answer ?? "–")), fact("step", el("b", {}, s.step)),
      fact("length", el("b", {}, s.tokens.length), " tokens"), fact(s.terminated ? "ended by itself" : "cut off by the length limit"));
    const first = Number.isInteger(s.first_error) && s.first_error >= 0 && s.first_error < s.tokens.length ? s.first_error : null;
    state.first = first;
    if (s.correct && first !== null) $("x-facts").append(fact("right by luck: the reasoning went wrong at token", el("b", {}, first + 1)));
    $("x-first").hidden = first === null;
    const nodes = [];
    s.tokens.forEach((token, t) => {
      if (t === first) nodes.push(el("span", { class: "flag", "aria-hidden": "true" }, "▼ first error"));
      const node = el("span", { class: "token" + (t === first ? " error" : ""), role: "option", tabindex: "-1", "data-index": t, id: "token-" + t }, shown(token));
      nodes.push(node);
      if (token.includes("\n")) nodes.push(el("br"));
    });
    $("x-tokens").replaceChildren(...nodes);
    state.nodes = [...$("x-tokens").querySelectorAll(".token")];
    state.token = Math.min(first ?? s.tokens.length - 1, s.tokens.length - 1);
    const hasValues = Array.isArray(s.values);
    for (const id of ["value", "delta"]) $("colour-" + id).disabled = !hasValues;
    $("colour-entropy").disabled = !s.entropy;
    $("colour-ratio").disabled = !(s.old_logprobs && (s.logprobs || s.new_logprobs));
    if ($("colour-" + state.colour).disabled) { state.colour = "advantage"; $("colour-advantage").checked = true; }
    asTrained();
  }

  function asTrained() {
    const s = state.sample, c = state.run.config;
    $("x-adaptive").checked = Boolean(c.length_adaptive) && c.advantage !== "group";
    setPair("x-alpha", c.alpha ?? 0.05);
    setPair("x-gamma", s.gamma ?? c.gamma ?? 1);
    setPair("x-lam", s.lam ?? c.lam ?? 0.95);
    refresh();
  }

  function setPair(id, value) { $(id).value = value; $(id + "-n").value = Number(Number(value).toPrecision(12)); }

  function refresh() {
    const s = state.sample, hasValues = Array.isArray(s.values), adaptive = $("x-adaptive").checked;
    $("x-sliders").disabled = !hasValues;
    for (const id of ["x-alpha", "x-alpha-n"]) $(id).disabled = !adaptive;
    for (const id of ["x-lam", "x-lam-n"]) $(id).disabled = adaptive;
    state.x = compute();
    if (adaptive && hasValues) setPair("x-lam", Number(state.x.lam.toPrecision(5)));
    $("x-note").textContent = !hasValues
      ? "This run has no value model: one advantage for the whole response, whatever λ."
      : `With γλ = ${number(state.x.gamma * state.x.lam, 4)} half of the credit is gone ${halfLife(state.x.gamma * state.x.lam)}.` +
        (state.run.config.whiten ? " The run whitened its advantages; those computed here are not whitened." : "");
    paint();
    numbers(state.token, false);
    drawTrace();
  }

  const halfLife = (decay) => (decay >= 1 ? "never: the verdict reaches every token in full" : decay <= 0 ? "at once: each token is judged by the next value alone" : `${number(Math.log(0.5) / Math.log(decay), 3)} tokens away`);

  function paint() {
    const quantity = QUANTITIES[state.colour], surface = rgb(css("surface")), values = quantity.of(state.x) || [];
    const scale = colourScale(quantity, state.x, surface);
    state.nodes.forEach((node, t) => {
      const known = Number.isFinite(values[t]), colour = known ? scale.at(values[t]) : surface;
      node.style.background = `rgb(${colour})`;
      node.style.color = inkOn(colour);
      node.dataset.value = known ? String(values[t]) : "";
      node.setAttribute("aria-label", `${state.sample.tokens[t]}, ${quantity.label} ${number(values[t])}${t === state.first ? ", first error" : ""}`);
    });
    const ramp = el("span", { class: "ramp", "aria-hidden": "true" });
    for (let i = 0; i < 11; i++) { const cell = el("i"); cell.style.background = `rgb(${scale.ramp(i / 10)})`; ramp.append(cell); }
    const ends = quantity.of === QUANTITIES.ratio.of && !state.sample.new_logprobs ? quantity.without : quantity.ends;
    const root = quantity.scale === ROOT.scale ? el("span", { title: `half of the colour at ±${number(scale.half[1])}` }, "(square-root scale)") : "";
    $("x-legend").replaceChildren(`${quantity.label}: ${number(scale.low)} ${ends[0]}`, ramp, `${ends[1]} ${number(scale.high)}`, root);
  }

  /** The panel of one token. */
  function numbers(t, announce) {
    const s = state.sample, x = state.x, T = s.tokens.length, at = (list) => (list ? number(list[t], 4) : "–");
    const row = (key, value, name) => el("tr", { class: name === state.colour ? "now" : null, "data-row": name || key }, el("td", {}, key), el("td", { class: "n" }, value));
    const next = s.values ? (t + 1 < T ? s.values[t + 1] : 0) : NaN;
    $("x-numbers").replaceChildren(
      el("div", { class: "what" }, shown(s.tokens[t])),
      el("div", { class: "hint" }, `token ${t + 1} of ${T}` + (t === state.first ? " · here the reasoning first goes wrong" : "")),
      el("table", {}, el("tbody", {}, ...[
        row("advantage Â", at(x.advantages), "advantage"), row("… as trained", at(x.trained), "trained"), row("TD error δ", at(x.delta), "delta"),
        row("value V(s) before it", at(s.values), "value"), row("value after it", number(next, 4), "next"), row("reward r", at(x.rewards), "reward"),
        row(s.new_logprobs ? "ratio after the step" : "ratio learner/sampler", at(x.ratio), "ratio"), row("log-prob when sampled", at(s.logprobs), "logprob"), row("… by the learner", at(s.old_logprobs), "old"),
        s.new_logprobs ? row("… after the step", at(s.new_logprobs), "new") : null, row("entropy", at(s.entropy), "entropy"),
        row("weight of the verdict", s.values ? number((x.gamma * x.lam) ** (T - 1 - t), 3) : "–", "weight"),
      ].filter(Boolean))));
    if (announce) $("x-live").textContent = `token ${t + 1}: ${QUANTITIES[state.colour].label} ${number((QUANTITIES[state.colour].of(x) || [])[t])}`;
  }

  function select(t, focus) {
    const last = state.nodes[state.token];
    last.setAttribute("aria-selected", "false");
    last.tabIndex = -1;
    state.token = t;
    const node = state.nodes[t];
    node.setAttribute("aria-selected", "true");
    node.tabIndex = 0;
    if (focus) { node.focus({ preventScroll: true }); node.scrollIntoView({ block: "nearest" }); }
    numbers(t, focus);
    moveCursor(t);
  }

  /** The token on the line above or below that lies nearest. */
  function onLine(t, down) {
    const here = state.nodes[t].getBoundingClientRect(), middle = here.left + here.width / 2;
    const all = state.nodes.map((n, i) => [n.getBoundingClientRect(), i]);
    const beyond = all.filter(([r]) => (down ? r.top > here.bottom - 2 : r.bottom < here.top + 2));
    if (!beyond.length) return t;
    const line = down ? Math.min(...beyond.map(([r]) => r.top)) : Math.max(...beyond.map(([r]) => r.top));
    return beyond.filter(([r]) => Math.abs(r.top - line) < 3).reduce((a, b) => (Math.abs(b[0].left + b[0].width / 2 - middle) < Math.abs(a[0].left + a[0].width / 2 - middle) ? b : a))[1];
  }

  const plotted = $("x-plot");
  function drawTrace() {
    select(state.token, false);
    if (!plotly) return;
    const s = state.sample, x = state.x, positions = s.tokens.map((_, t) => t + 1), name = s.tokens.map((t) => plain(shown(t)));
    const line = (y, label, colour, extra) => ({ x: positions, y, name: label, customdata: name, mode: "lines", line: { color: colour, width: 2, ...extra }, hovertemplate: "%{y:.4~g}" });
    const traces = [line(x.trained, "Â as trained", css("soft"), { dash: "dot", width: 1.5 })];
    if (s.values) traces.push(line(s.values, "value V(s)", lineColour(4), { width: 1.5 }), line(x.advantages, "Â now", lineColour(0), { width: 2.5 }));
    plotly.react(plotted, traces, layout({
      showlegend: true, legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 12 } }, margin: { l: 12, r: 16, t: 34, b: 12 }, shapes: marks(state.token),
      xaxis: { text: "token of the response", unifiedhovertitle: { text: "%{x}: %{customdata}" } }, yaxis: { text: "reward", tickformat: "~g" },
    }), PLOT);
    if (!plotted.dataset.drawn) {
      plotted.dataset.drawn = "yes";
      plotted.on("plotly_click", (event) => select(event.points[0].x - 1, true));
    }
  }
  const rule = (t, colour, dash) => ({ type: "line", x0: t + 1, x1: t + 1, yref: "paper", y0: 0, y1: 1, line: { color: colour, width: 1.5, dash }, layer: "below" });
  const marks = (t) => [rule(t, css("accent"), "solid"), ...(state.first === null ? [] : [rule(state.first, css("warn"), "dash")])];
  let moving = 0;
  function moveCursor(t) {
    if (!plotly || !plotted.dataset.drawn) return;
    cancelAnimationFrame(moving);
    moving = requestAnimationFrame(() => plotly.relayout(plotted, { shapes: marks(t) }));
  }

  if (runs.length) {
    runs.forEach((r) => $("x-run").append(el("option", { value: r.index }, `${r.run} (${groups[r.group].name})`)));
    for (const [key, quantity] of Object.entries(QUANTITIES)) {
      $("x-colour").append(el("label", {}, el("input", { type: "radio", name: "colour", id: "colour-" + key, value: key, checked: key === "advantage", onchange: () => { state.colour = key; paint(); numbers(state.token, false); } }), quantity.label));
    }
    const step = (by) => chooseSample((state.index + by + state.run.rows.length) % state.run.rows.length);
    $("x-run").addEventListener("change", (event) => chooseRun(runs.find((r) => r.index === Number(event.target.value)), 0));
    $("x-sample").addEventListener("change", (event) => chooseSample(Number(event.target.value)));
    $("x-prev").addEventListener("click", () => step(-1));
    $("x-next").addEventListener("click", () => step(1));
    $("x-reset").addEventListener("click", asTrained);
    $("x-first").addEventListener("click", () => select(state.first, true));
    $("x-adaptive").addEventListener("change", refresh);
    let waiting = 0;
    for (const id of ["x-alpha", "x-lam", "x-gamma"]) {
      const take = (from, to) => () => {
        const value = Number($(from).value), top = id === "x-alpha" ? Infinity : 1;
        if (!($(from).value !== "" && value <= top && (id === "x-alpha" ? value > 0 : value >= 0))) return; // half-typed numbers wait
        $(to).value = value;
        cancelAnimationFrame(waiting);
        waiting = requestAnimationFrame(refresh);
      };
      $(id).addEventListener("input", take(id, id + "-n"));
      $(id + "-n").addEventListener("input", take(id + "-n", id));
    }
    const box = $("x-tokens");
    const indexOf = (event) => { const node = event.target.closest?.(".token"); return node ? Number(node.dataset.index) : null; };
    box.addEventListener("mouseover", (event) => { const t = indexOf(event); if (t !== null) numbers(t, false); });
    box.addEventListener("mouseleave", () => numbers(state.token, false));
    box.addEventListener("click", (event) => { const t = indexOf(event); if (t !== null) select(t, true); });
    box.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const t = state.token, end = state.nodes.length - 1;
      const to = { ArrowRight: Math.min(t + 1, end), ArrowLeft: Math.max(t - 1, 0), ArrowDown: onLine(t, true), ArrowUp: onLine(t, false), Home: 0, End: end, e: state.first, E: state.first }[event.key];
      if (to === undefined || to === null) return;
      event.preventDefault();
      select(to, true);
    });
    themed.push(() => { paint(); drawTrace(); });
    // start where there is most to see: a late response with an error in it
    const run = runs[0];
    const telling = (s) => Number.isInteger(s.first_error) && s.first_error > 2;
    const wrong = run.rows.findLastIndex((s) => telling(s) && !s.correct && s.tokens.length <= 150);
    chooseRun(run, wrong >= 0 ? wrong : Math.max(run.rows.findLastIndex(telling), 0));
  }
  window.minivapo = { gae, lengthAdaptiveLambda, tdErrors, state: () => state.x };

  // ------------------------------------------------------------------------------------------- samples
  {
    let limit = 25;
    const total = data.samples.reduce((n, r) => n + r.total, 0), kept = runs.reduce((n, r) => n + r.rows.length, 0);
    $("samples-lead").textContent = total ? `${kept} of the ${total} responses that the run${runCount > 1 ? "s" : ""} kept${kept < total ? ", evenly over time" : ""}.` : "No responses were kept.";
    $("s-run").append(el("option", { value: "" }, "all"), ...runs.map((r) => el("option", { value: r.index }, r.run)));
    function draw() {
      const wanted = $("s-run").value, mark = $("s-verdict").value, order = $("s-order").value;
      let rows = runs.filter((r) => wanted === "" || r.index === Number(wanted)).flatMap((run) => run.rows.map((s, i) => ({ run, s, i })));
      if (mark) rows = rows.filter(({ s }) => Boolean(s.correct) === (mark === "right"));
      rows.sort((a, b) => (order === "first" ? a.s.step - b.s.step : order === "last" ? b.s.step - a.s.step : b.s.tokens.length - a.s.tokens.length));
      const head = ["", ...(runs.length > 1 ? ["run"] : []), "step", "verdict", "tokens", "λ", "prompt", "response", "answer"];
      $("samples-table").replaceChildren(...(rows.length ? [el("table", {}, el("thead", {}, el("tr", {}, ...head.map((h) => el("th", { scope: "col", class: /step|tokens|λ/.test(h) ? "n" : null }, h)))),
        el("tbody", {}, ...rows.slice(0, limit).map(({ run, s, i }) => el("tr", {},
          el("td", {}, el("button", { type: "button", "aria-label": `Explore the response to ${clipText(s.prompt ?? "", 40)}`, onclick: () => { chooseRun(run, i); $("explorer").scrollIntoView(); select(state.token, true); } }, "Explore")),
          ...(runs.length > 1 ? [el("td", {}, run.run)] : []),
          el("td", { class: "n" }, s.step), el("td", {}, verdict(s)), el("td", { class: "n" }, s.tokens.length + (s.terminated ? "" : " ✂")), el("td", { class: "n" }, number(s.lam, 4)),
          el("td", {}, el("div", { class: "clip" }, clipText(s.prompt ?? "", 300))), el("td", {}, el("div", { class: "clip" }, clipText(text(s.tokens), 300))), el("td", { class: "mono" }, s.answer ?? "–")))))] : []));
      $("s-more").hidden = rows.length <= limit;
    }
    for (const id of ["s-run", "s-verdict", "s-order"]) $(id).addEventListener("change", draw);
    $("s-more").addEventListener("click", () => { limit += 50; draw(); });
    draw();
  }

  // ------------------------------------------------------------------------------------------- plotly
  try {
    const packed = Uint8Array.from(atob($("plotly").textContent), (c) => c.charCodeAt(0));
    const source = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
    document.head.append(el("script", {}, source)); // its hash is in the content security policy
    plotly = window.Plotly;
    if (!plotly) throw new Error("plotly.js did not start");
    $("plot-state").remove();
    charts.forEach(drawChart);
    if (runs.length) drawTrace();
  } catch (error) {
    $("plot-state").textContent = `No curves: ${error.message}. Use a browser of 2023 or later; every number is in the tables.`;
  }
  document.documentElement.dataset.ready = "yes";
})();
