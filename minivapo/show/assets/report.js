/* The page. All text that came out of a run goes through textContent; nothing is ever parsed as HTML. */
(async () => {
  const data = JSON.parse($("data").textContent);

  // ------------------------------------------------------------------------------------------- colours
  const DASHES = ["solid", "dash", "dot", "dashdot"];
  const lineColour = (i) => "#" + rgb(css(`series-${i % 8}`)).map((v) => v.toString(16).padStart(2, "0")).join("");
  const lineDash = (i) => DASHES[Math.floor(i / 8) % DASHES.length];

  const groups = data.groups, runCount = groups.reduce((n, g) => n + g.seeds, 0);

  // ------------------------------------------------------------------------------------------- curves
  const hidden = new Set();
  const charts = [...document.querySelectorAll("#charts figure")].map((figure) => (
    { spec: data.charts[figure.dataset.chart], figure, plot: figure.querySelector(".plot"), seen: false }));
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
      const text = s.x.map((_, i) => (s.low ? `${number(s.low[i])} – ${number(s.high[i])}, ${s.count[i]} of ${groups[s.group].seeds} seeds` : ""));
      traces.push({ x, y: s.mean, name: plain(name), mode: few ? "lines+markers" : "lines", line: { color: colour, width: 2, dash: lineDash(s.group) }, marker: { size: 6, color: colour },
        text, hovertemplate: (share ? "%{y:.1%}" : "%{y:.4~g}") + (s.low ? " (%{text})" : "") + "<extra>%{fullData.name}</extra>" });
    }
    const names = { step: chart.spec.axis === "pretrain" ? "rollout of the fixed policy" : "step", samples: "responses sampled", "time/cpu_seconds": "processor seconds" };
    chart.figure.dataset.drawn = "yes"; // the still picture gives way, on a screen
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

  {
    charts.forEach((chart) => observer.observe(chart.figure));
    for (const box of $("legend").querySelectorAll("input")) {
      const i = Number(box.dataset.group);
      box.addEventListener("change", () => { box.checked ? hidden.delete(i) : hidden.add(i); charts.forEach(drawChart); });
    }
    $("axis").addEventListener("change", () => charts.forEach(drawChart));
    $("find").addEventListener("input", (event) => {
      const wanted = event.target.value.trim().toLowerCase();
      for (const c of charts) c.figure.hidden = wanted !== "" && !(c.spec.name + " " + c.spec.title).toLowerCase().includes(wanted);
      for (const d of document.querySelectorAll("#charts > details")) { d.hidden = ![...d.querySelectorAll("figure")].some((f) => !f.hidden); if (wanted) d.open = !d.hidden; }
    });
    themed.push(() => charts.forEach(drawChart));
  }

  // Printed or saved as PDF, every chart is there: all parts open, and the still pictures take the place of the live ones.
  let folded = [];
  addEventListener("beforeprint", () => { folded = [...document.querySelectorAll("#charts > details:not([open])")]; folded.forEach((d) => (d.open = true)); });
  addEventListener("afterprint", () => { folded.forEach((d) => (d.open = false)); folded = []; });

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
    // where the task can tell a prefix's value: what each token really did to it, and how far V was off
    x.truth = s.true_values ? tdErrors(rewards, s.true_values, g0) : null;
    x.error = s.true_values && hasValues ? s.values.map((v, t) => v - s.true_values[t]) : null;
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
    $("colour-truth").disabled = !s.true_values;
    $("colour-error").disabled = !(s.true_values && hasValues);
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
        row("value V(s) before it", at(s.values), "value"), row("value after it", number(next, 4), "next"),
        ...(s.true_values ? [row("true value before it", at(s.true_values), "true"), row("true advantage", at(x.truth), "truth")] : []), row("reward r", at(x.rewards), "reward"),
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
    if (s.true_values) traces.push(line(s.true_values, "true value", lineColour(2), { dash: "dash", width: 1.5 }));
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
    // start where there is most to see: where an error spoilt most of a value, or else a late response with an error
    const run = runs[0];
    const telling = (s) => Number.isInteger(s.first_error) && s.first_error > 2;
    const spoilt = (s) => (telling(s) && !s.correct && s.tokens.length <= 150 ? (s.true_values?.[s.first_error] ?? 0) : -1);
    const most = run.rows.reduce((best, s, i) => (spoilt(s) >= 0 && (best < 0 || spoilt(s) >= spoilt(run.rows[best])) ? i : best), -1);
    chooseRun(run, most >= 0 ? most : Math.max(run.rows.findLastIndex(telling), 0));
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
      const words = $("s-search").value.toLowerCase().trim();
      if (words) rows = rows.filter(({ s }) => `${s.prompt ?? ""}\n${text(s.tokens)}\n${s.answer ?? ""}`.toLowerCase().includes(words));
      $("s-found").textContent = words ? `${rows.length} found` : "";
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
    $("s-search").addEventListener("input", draw);
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
