// Runs the script of a report's page on stand-ins for the few elements that a growing text has.
// node slider.js PAGE.JS < [{"stages": …, "tokens": number}, [values of the slider …]]: the page's state at first and
// after each move, as JSON.
"use strict";
const { readFileSync } = require("fs");

const [page, moves] = JSON.parse(readFileSync(0, "utf8"));

const element = (more) => ({
  dataset: {},
  attributes: {},
  listeners: {},
  addEventListener(name, what) { this.listeners[name] = what; },
  setAttribute(name, value) { this.attributes[name] = value; },
  ...more,
});
const label = element({ hidden: true });
const slider = element({ value: String(page.stages.length), closest: () => label });
const output = element({});
const tokens = Array.from({ length: page.tokens }, () => element({}));
const grown = element({
  dataset: { growth: "0" },
  querySelector: (name) => ({ input: slider, output })[name],
  querySelectorAll: () => tokens,
});
const data = { pieces: [], runs: [], growths: [page.stages] };
const ids = { theme: element({}), data: { textContent: JSON.stringify(data) } };

globalThis.document = {
  documentElement: element({}),
  getElementById: (id) => ids[id] || null,
  querySelectorAll: (name) => (name === "[data-growth]" ? [grown] : []),
};
globalThis.addEventListener = () => {};
globalThis.matchMedia = () => ({ matches: false, addEventListener() {} });
(0, eval)(readFileSync(process.argv[2], "utf8"));

const state = () => ({
  shown: tokens.filter((one) => !one.hidden).map((one) => one.className),
  titles: tokens.map((one) => one.title),
  said: output.textContent,
  label: label.hidden,
  value: slider.attributes["aria-valuetext"],
  ready: document.documentElement.dataset.ready,
});
const seen = [state()];
for (const move of moves) {
  slider.value = String(move);
  slider.listeners.input();
  seen.push(state());
}
process.stdout.write(JSON.stringify(seen));
