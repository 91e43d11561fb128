"use strict";
/* What the report and docs/explore.html share: elements, numbers as text, colours of the theme and its switch. */

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

const probe = el("i", { hidden: true });
document.body.append(probe);
function css(name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}
const rgb = (text) => text.match(/[\d.]+/g).slice(0, 3).map(Number);

const themed = []; // what to do again when the theme changes
const remembered = (() => { try { return localStorage.getItem("minivapo-theme"); } catch { return null; } })();
function setTheme(theme) {
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  $("theme").value = theme || "auto";
  themed.forEach((f) => f());
}
$("theme").addEventListener("change", (event) => {
  try { localStorage.setItem("minivapo-theme", event.target.value); } catch { /* a page from disk may have no storage */ }
  setTheme(event.target.value);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(document.documentElement.dataset.theme || "auto"));
setTheme(remembered || "auto");
