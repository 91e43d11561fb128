"use strict";
/* The arithmetic of the token explorer; the same as minivapo.vapo.gae, in double precision. */

/** λ = 1 − 1/(α l), clamped to [0, 1] (VAPO §4.2, eq. 5). */
function lengthAdaptiveLambda(length, alpha) {
  return Math.min(1, Math.max(0, 1 - 1 / (alpha * length)));
}

/** δ_t = r_t + γ V(s_{t+1}) − V(s_t), V = 0 after the last token. */
function tdErrors(rewards, values, gamma) {
  return values.map((v, t) => rewards[t] + gamma * (t + 1 < values.length ? values[t + 1] : 0) - v);
}

/** Â_t = δ_t + γ λ Â_{t+1} (VAPO §2, eq. 3). */
function gae(rewards, values, gamma, lam) {
  const advantages = tdErrors(rewards, values, gamma);
  for (let t = advantages.length - 2; t >= 0; t--) advantages[t] += gamma * lam * advantages[t + 1];
  return advantages;
}

/** Mixes two [r, g, b] colours; t = 0 gives a. */
function mix(a, b, t) {
  return a.map((x, i) => Math.round(x + (b[i] - x) * t));
}

/** WCAG relative luminance of [r, g, b]. */
function luminance(rgb) {
  const [r, g, b] = rgb.map((x) => (x /= 255) <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** Black or white, whichever reads better on this colour: the contrast is never below 4.5. */
function inkOn(rgb) {
  return luminance(rgb) > 0.179 ? "#000" : "#fff";
}

/* Blue and orange of the Okabe-Ito palette: told apart with every common colour blindness. */
const BLUE = [0, 114, 178], ORANGE = [230, 120, 0];

/* Credit fades exponentially, so a linear scale shows the last few tokens alone; a square root shows the chain. */
const ROOT = { scale: (v) => Math.sign(v) * Math.sqrt(Math.abs(v)), show: (s) => Math.sign(s) * s * s };

/** What a token can be coloured by: how to get it, and from where to where its scale goes. */
const QUANTITIES = {
  advantage: {
    label: "advantage Â", diverging: true, ...ROOT, of: (x) => x.advantages,
    // wide enough for every λ at the run's γ, so that moving the slider changes colours and not their scale
    reach: (x) => Math.sqrt(Math.max(peak(x.trained), peak(x.monteCarlo), peak(x.delta1), 1e-9)),
    ends: ["worse than expected", "better than expected"],
  },
  value: {
    label: "value V(s)", of: (x) => x.sample.values,
    range: (x) => [Math.min(x.low, ...finite(x.sample.values)), Math.max(x.high, ...finite(x.sample.values))],
    ends: ["expects a wrong answer", "expects a right one"], colour: BLUE,
  },
  delta: {
    label: "TD error δ", diverging: true, ...ROOT, of: (x) => x.delta, reach: (x) => Math.sqrt(Math.max(peak(x.delta1), 1e-9)),
    ends: ["outlook fell", "outlook rose"],
  },
  truth: {
    label: "true advantage", diverging: true, ...ROOT, of: (x) => x.truth, reach: (x) => Math.sqrt(Math.max(peak(x.truth), 1e-9)),
    ends: ["made the right answer less likely", "made it more likely"],
  },
  error: {
    label: "error of V", diverging: true, of: (x) => x.error, reach: (x) => Math.max(peak(x.error), 0.05),
    ends: ["V too low", "V too high"],
  },
  ratio: {
    label: "ratio ρ", diverging: true, of: (x) => x.ratio, scale: (v) => Math.log(v), show: (v) => Math.exp(v),
    reach: (x) => Math.max(Math.log(1.28), ...finite(x.ratio).map((v) => Math.abs(Math.log(v)))),
    ends: ["made less likely by the step", "made more likely"],
    without: ["less likely to the learner than to the sampler", "more likely"],
  },
  logprob: {
    label: "log-prob", of: (x) => x.sample.logprobs, range: (x) => [Math.min(-1e-9, ...finite(x.sample.logprobs)), 0],
    flip: true, ends: ["surprising", "certain"], colour: ORANGE,
  },
  entropy: {
    label: "entropy", of: (x) => x.sample.entropy, range: (x) => [0, Math.max(1e-9, ...finite(x.sample.entropy))],
    ends: ["no choice", "open choice"], colour: BLUE,
  },
};

function finite(list) {
  return (list || []).filter((v) => Number.isFinite(v));
}

function peak(list) {
  return finite(list).reduce((m, v) => Math.max(m, Math.abs(v)), 0);
}

/** A function from a number of this quantity to its colour on this page, and the ends of its scale. */
function colourScale(quantity, x, surface) {
  if (quantity.diverging) {
    const reach = quantity.reach(x), scale = quantity.scale || ((v) => v), show = quantity.show || ((v) => v);
    const at = (s) => mix(surface, s < 0 ? ORANGE : BLUE, Math.min(1, Math.abs(s)));
    return { at: (v) => at(scale(v) / reach), ramp: (u) => at(2 * u - 1), low: show(-reach), high: show(reach), half: [show(-reach / 2), show(reach / 2)] };
  }
  const [low, high] = quantity.range(x);
  const at = (u) => mix(surface, quantity.colour, Math.min(1, Math.max(0, quantity.flip ? 1 - u : u)));
  return { at: (v) => at((v - low) / (high - low || 1)), ramp: at, low, high };
}
