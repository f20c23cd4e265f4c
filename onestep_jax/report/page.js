"use strict";
(() => {
  const root = document.documentElement;
  addEventListener("error", (event) => { root.dataset.error = `${root.dataset.error || ""}${event.message};`; });
  addEventListener("securitypolicyviolation", (event) => { root.dataset.error = `${root.dataset.error || ""}policy ${event.violatedDirective};`; });
  const at = (id) => document.getElementById(id);

  /* Light and dark: as the system says, until the reader chooses. */
  const theme = at("theme");
  const stored = (value) => {
    try { return value === undefined ? localStorage.getItem("onestep-theme") : localStorage.setItem("onestep-theme", value); } catch { return null; }
  };
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  const nameTheme = () => { theme.textContent = dark() ? "Light colours" : "Dark colours"; };
  if (["light", "dark"].includes(stored())) root.dataset.theme = stored();
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; stored(root.dataset.theme); nameTheme(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
  nameTheme();
  theme.hidden = false;

  const opened = new Set();
  addEventListener("beforeprint", () => {
    for (const one of document.querySelectorAll("details:not([open])")) { one.open = true; opened.add(one); }
  });
  addEventListener("afterprint", () => { for (const one of opened) one.open = false; opened.clear(); });

  const { pieces, runs, growths = [] } = JSON.parse(at("data").textContent);

  /* A text that grew: the slider chooses a stage, and the tokens of later stages are hidden. */
  for (const grown of document.querySelectorAll("[data-growth]")) {
    const stages = growths[Number(grown.dataset.growth)];
    const slider = grown.querySelector("input");
    const tokens = [...grown.querySelectorAll(".token")];
    const show = () => {
      const stage = stages[Number(slider.value) - 1];
      const found = new Set(stage.found);
      tokens.forEach((token, i) => {
        token.hidden = i >= stage.length;
        token.className = `token ${stage.wrong[i] === undefined ? "right" : "wrong"}${found.has(i) ? " found" : ""}`;
        token.title = stage.wrong[i] || "";
      });
      grown.querySelector("output").textContent = stage.said;
      slider.setAttribute("aria-valuetext", `stage ${slider.value} of ${stages.length}, tokens: ${stage.length}`);
    };
    slider.addEventListener("input", show);
    slider.closest("label").hidden = false;
    show();
  }

  const browser = at("browser");
  if (!browser) { root.dataset.ready = "true"; return; }

  const texts = runs.flatMap((run, number) => run.texts.map((text) => ({ ...text, run: number })));
  const PAGE = 12;
  const NAMES = ["query", "run", "show", "sort", "color", "view"].filter((name) => at(name));
  const KEYS = { query: "q" };
  const chosen = (name) => (at(name) ? at(name).value : "");
  let matching = [];
  let drawn = 0;

  const written = (text, output) =>
    text.pieces.map((piece, i) => pieces[output && text.wrong[i] ? text.wrong[i][1] : piece]).join(runs[text.run].strings ? "" : " ");
  const words = texts.map((text) => `${written(text, false)}\n${written(text, true)}\n${text.id}`.toLowerCase());

  const accuracy = (value) => (value === 1 ? "1" : Math.min(value, 0.9999).toFixed(4));
  const element = (name, className, content) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (content !== undefined) made.textContent = content;
    return made;
  };
  const quoted = (piece) => `“${piece.replaceAll("\n", "↵").replaceAll("\t", "⇥")}”`;
  const named = (text, piece, id) => (runs[text.run].strings ? `${quoted(pieces[piece])} (${id})` : `${id}`);

  /* What is known of one token, in a sentence. */
  const described = (text, i) => {
    const facts = [`token ${i + 1} of ${text.tokens.length}`];
    const wrong = text.wrong[i];
    facts.push(wrong ? `wrong: expected ${named(text, text.pieces[i], text.tokens[i])}, got ${named(text, wrong[1], wrong[0])}` : `right: ${named(text, text.pieces[i], text.tokens[i])}`);
    if (text.nats[i] !== null && text.nats[i] !== undefined) facts.push(`${text.nats[i].toFixed(2)} nats`);
    if (text.first.length) facts.push(text.first[i] < 0 ? "never right" : `first right at step ${text.first[i].toLocaleString("en")}`);
    return facts.join(" · ");
  };

  const heat = (text, i, color) => {
    if (color === "nats") return text.nats[i] === null || text.nats[i] === undefined ? 0 : Math.min(1, text.nats[i] / 12);
    if (!text.first.length) return 0;
    return text.first[i] < 0 ? 1 : text.first[i] / Math.max(1, ...text.first);
  };

  const tokenSpan = (text, i) => {
    const wrong = text.wrong[i];
    const output = wrong && chosen("view") === "output";
    const piece = pieces[output ? wrong[1] : text.pieces[i]];
    const span = element("span", `token ${wrong ? "wrong" : "right"}${output ? " output" : ""}`);
    span.append(piece.replaceAll("\n", "↵\n").replaceAll("\t", "⇥\t") || "∅");
    span.setAttribute("role", "option");
    span.setAttribute("aria-selected", "false");
    span.setAttribute("aria-label", wrong ? `wrong: expected ${quoted(pieces[text.pieces[i]])}, got ${quoted(pieces[wrong[1]])}` : `${quoted(pieces[text.pieces[i]])}, right`);
    span.tabIndex = i ? -1 : 0;
    span.dataset.i = i;
    if (chosen("color")) { span.classList.add("heat"); span.style.setProperty("--heat", heat(text, i, chosen("color")).toFixed(3)); }
    return span;
  };

  /* Arrow keys walk the tokens, up and down the wrong ones. */
  const walk = (event, box, text) => {
    const here = Number(event.target.dataset.i);
    const back = getComputedStyle(box).direction === "rtl";
    const errors = Object.keys(text.wrong).map(Number);
    const targets = {
      ArrowRight: here + (back ? -1 : 1), ArrowLeft: here + (back ? 1 : -1), Home: 0, End: text.tokens.length - 1,
      ArrowDown: errors.find((i) => i > here), ArrowUp: errors.findLast((i) => i < here),
    };
    if (!(event.key in targets) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const next = box.querySelector(`[data-i="${targets[event.key]}"]`);
    if (next) next.focus();
  };

  const card = (text) => {
    const made = element("article", "card");
    const line = element("div", "line");
    const title = element("h3", "", runs.length > 1 ? `${runs[text.run].name}, text ${text.index}` : `Text ${text.index}`);
    title.id = `text-${text.run}-${text.index}`;
    made.setAttribute("aria-labelledby", title.id);
    const count = text.tokens.length;
    const exact = text.exact === count;
    line.append(title, element("span", exact ? "badge" : "badge wrong", exact ? "✓ exact" : `✗ ${count - text.exact} of ${count} wrong`));
    const facts = [`${count} tokens`, `accuracy ${accuracy(text.accuracy)}`, `${text.steps.toLocaleString("en")} steps`];
    if (text.h_lm !== null) facts.push(`H_LM ${text.h_lm.toFixed(1)} nats`);
    for (const fact of [...facts, `seed ${text.seed}`, text.status, text.id]) line.append(element("span", "", fact));
    const box = element("div", "tokens");
    box.setAttribute("role", "listbox");
    box.setAttribute("aria-orientation", "horizontal");
    box.setAttribute("aria-label", `Tokens of text ${text.index}; left and right: tokens, up and down: wrong tokens`);
    box.dir = "auto";
    text.tokens.forEach((_, i) => {
      if (i && !runs[text.run].strings) box.append(" ");
      box.append(tokenSpan(text, i));
    });
    const detail = element("p", "detail", "");
    detail.setAttribute("role", "status");
    const show = (event) => {
      if (event.target.dataset.i === undefined) return;
      detail.textContent = described(text, Number(event.target.dataset.i));
    };
    const choose = (event) => {
      if (event.target.dataset.i === undefined) return;
      for (const one of box.querySelectorAll('[tabindex="0"]')) { one.tabIndex = -1; one.setAttribute("aria-selected", "false"); }
      event.target.tabIndex = 0;
      event.target.setAttribute("aria-selected", "true");
      show(event);
    };
    box.addEventListener("mouseover", show);
    box.addEventListener("focusin", choose);
    box.addEventListener("click", (event) => { if (event.target.dataset.i !== undefined) event.target.focus(); });
    box.addEventListener("keydown", (event) => walk(event, box, text));
    made.append(line, box, detail);
    return made;
  };

  const ORDERS = {
    accuracy: (a, b) => a.accuracy - b.accuracy,
    steps: (a, b) => b.steps - a.steps,
    length: (a, b) => b.tokens.length - a.tokens.length,
    h_lm: (a, b) => (b.h_lm ?? -1) - (a.h_lm ?? -1),
  };
  const KEPT = {
    exact: (text) => text.exact === text.tokens.length,
    wrong: (text) => text.exact < text.tokens.length,
    lost: (text) => text.accuracy < 0.99,
  };

  const more = () => {
    const first = drawn;
    at("cards").append(...matching.slice(drawn, drawn + PAGE).map(card));
    drawn = Math.min(matching.length, drawn + PAGE);
    at("more").hidden = drawn >= matching.length;
    at("more").textContent = `Show ${Math.min(PAGE, matching.length - drawn)} more`;
    return at("cards").children[first];
  };

  const LEGENDS = {
    "": "Tinted: right. Wavy underline: wrong; struck through where what came out is shown. Point at a token, or go through them by arrow keys, for details.",
    nats: "The deeper the colour, the more nats the token holds under the model: −ln P after the tokens before it, deepest from 12.",
    first: "The deeper the colour, the later in its text's fit the token first came out right; deepest: last, or never.",
  };

  const draw = () => {
    const query = chosen("query").trim().toLowerCase();
    const kept = KEPT[chosen("show")] || (() => true);
    matching = texts.filter((text, i) => kept(text) && words[i].includes(query) && (!chosen("run") || String(text.run) === chosen("run")));
    if (ORDERS[chosen("sort")]) matching.sort(ORDERS[chosen("sort")]);
    drawn = 0;
    at("cards").replaceChildren();
    at("count").textContent = matching.length === texts.length ? `${texts.length} ${texts.length === 1 ? "text" : "texts"}` : `${matching.length} of ${texts.length} texts`;
    at("legend").textContent = LEGENDS[chosen("color")];
    more();
  };

  /* The choices stand in the address, as #q=…&sort=…, so that a view can be kept or passed on. */
  const remember = () => {
    const parts = NAMES.filter(chosen).map((name) => `${KEYS[name] || name}=${encodeURIComponent(chosen(name))}`);
    try { history.replaceState(null, "", `#${parts.join("&") || "texts"}`); } catch { /* not allowed in some viewers of files */ }
  };
  const recall = () => {
    if (!location.hash.includes("=")) return;
    const given = new URLSearchParams(location.hash.slice(1));
    for (const name of NAMES) {
      at(name).value = given.get(KEYS[name] || name) || "";
      if (at(name).selectedIndex === -1) at(name).selectedIndex = 0;
    }
  };

  at("controls").addEventListener("submit", (event) => event.preventDefault());
  at("controls").addEventListener("input", () => { draw(); remember(); });
  at("more").addEventListener("click", () => {
    const first = more();
    if (first) first.querySelector(".token").focus();
  });
  addEventListener("hashchange", () => { if (location.hash.includes("=")) { recall(); draw(); } });
  recall();
  browser.hidden = false;
  at("plain").open = false;
  draw();
  root.dataset.ready = "true";
})();
