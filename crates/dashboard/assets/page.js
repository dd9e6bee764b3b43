(() => {
"use strict";
const A = JSON.parse(document.getElementById("analysis").textContent);
const $ = (id) => document.getElementById(id);
const HITS = 8;
/** How latents are ranked: [its name, in a sentence's data, in a token's, the title of a sentence's table]. */
const RANKS = [
  ["what stands out", "distinctive", "distinctive", "Latents that stand out in this sentence"],
  ["largest activation", "strongest", "top", "Strongest latents of this sentence"],
];
/** The SAE shown, the ranking, the latent chosen (null: the first of each sentence), the token looked at, the token kept. */
const state = { sae: 0, rank: 0, latent: null, look: null, kept: null };
let sae, traces, dense, sentences;

/** An element. Text goes in as text nodes, never as markup. */
function h(tag, attrs, ...kids) {
  const el = document.createElement(tag);
  for (const [key, value] of Object.entries(attrs || {})) {
    if (value == null || value === false) continue;
    if (key.startsWith("on")) el.addEventListener(key.slice(2), value);
    else if (key.startsWith("--")) el.style.setProperty(key, value);
    else el.setAttribute(key, value === true ? "" : value);
  }
  el.append(...kids.flat().filter((kid) => kid != null));
  return el;
}

function num(x) {
  const size = Math.abs(x);
  if (size === 0) return "0";
  if (size < 0.001 || size >= 99999.5) return x.toExponential(1).replace("+", "");
  return x.toFixed(size >= 99.95 ? 0 : size >= 0.995 ? 1 : size >= 0.0995 ? 2 : 3);
}
const percent = (x) => (x == null ? "–" : (100 * x).toFixed(1) + " %");
const fixed = (x, digits) => (x == null ? "–" : x.toFixed(digits));
const count = (n, one) => n.toLocaleString("en") + " " + one + (n === 1 ? "" : "s");

/** A token's text with nothing invisible in it; leading spaces stay. */
function visible(token) {
  if (/^ +$/.test(token)) return "·".repeat(token.length);
  return token
    .replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\u00a0/g, "⍽")
    .replace(/(?![\u200c\u200d])[\p{Cc}\p{Cf}\p{Co}\u2028\u2029]|^[\u200c\u200d]+$/gu,
      (c) => [...c].map((d) => "\\u{" + d.codePointAt(0).toString(16) + "}").join(""))
    .replace(/^\p{M}/u, "◌$&");
}

/** A latent's activation on every token of a prompt. */
function activations(latent, prompt) {
  const key = latent + "/" + prompt;
  if (!dense.has(key)) {
    const values = new Float64Array(A.prompts[prompt].tokens.length);
    const on = traces.get(latent)?.active.find((a) => a.prompt === prompt);
    on?.tokens.forEach((token, i) => { values[token] = on.activations[i]; });
    dense.set(key, values);
  }
  return dense.get(key);
}

const ofSentence = (p) => sae.prompts[p][RANKS[state.rank][1]];
const ofToken = (p, t) => sae.prompts[p].tokens[t][RANKS[state.rank][2]];

/** Where a latent is active, strongest first, tokens that count before the others. */
function hits(latent) {
  const all = traces.get(latent).active.flatMap((on) =>
    on.tokens.map((token, i) => ({ prompt: on.prompt, token, value: on.activations[i], counted: A.prompts[on.prompt].counted[token] })));
  return all.sort((a, b) => b.counted - a.counted || b.value - a.value);
}

/** How deep a value's colour is: nothing for 0, at least a tint for all else. */
const depth = (value, max) => (value > 0 ? 0.12 + 0.88 * Math.min(1, value / max) : 0);

/** The latent that colours a sentence, and the activation that is its full colour. */
function colouring(prompt) {
  if (state.latent == null) {
    const first = ofSentence(prompt)[0];
    return first && { latent: first.latent, max: first.max_activation };
  }
  const max = traces.get(state.latent).max_activation || hits(state.latent)[0]?.value || 1;
  return { latent: state.latent, max };
}

/** Bars, one a token, as one picture. `kind(i)` is the class of bar i. */
function bars(values, kind, label) {
  const ns = $("svg").namespaceURI;
  const svg = document.createElementNS(ns, "svg");
  const n = values.length;
  const set = (el, attrs) => { for (const [key, value] of Object.entries(attrs)) el.setAttribute(key, value); return el; };
  set(svg, { class: "bars", viewBox: `0 0 ${n} 20`, preserveAspectRatio: "none", role: "img", "aria-label": label });
  const paths = {};
  values.forEach((value, i) => {
    const high = value > 0 ? Math.max(1, Math.min(20, 20 * value)) : 0;
    if (high) paths[kind(i)] = (paths[kind(i)] || "") + `M${i + 0.08} 20v${-high}h.84v${high}z`;
  });
  const rect = (attrs) => svg.append(set(document.createElementNS(ns, "rect"), attrs));
  rect({ class: "at", width: 0, height: 20 });
  rect({ class: "base", y: 19.2, width: n, height: 0.8 });
  for (const [name, d] of Object.entries(paths)) svg.append(set(document.createElementNS(ns, "path"), { class: name, d }));
  return svg;
}

/** A name that may break after its slashes. */
const breakable = (name) => name.split(/(?<=\/)/).flatMap((part) => [part, h("wbr")]);

/** A bar as long as a latent's activation, with a tick at its mean. */
const meter = (latent, value, max, off) => h("span", { class: off ? "meter no" : "meter", "--m": Math.min(1, traces.get(latent).mean_activation / max) },
  h("i", { "--w": Math.max(0, Math.min(1, value / max)) }), h("u"), h("span", { class: "num" }, num(value)));

// ---- what stands on the page ----

function drawHead() {
  const m = sae.metrics, d = A.definitions;
  const stat = (name, value, text) => h("div", null, h("dt", { title: text }, name), h("dd", null, value));
  const saes = A.saes.length > 1 && h("fieldset", { class: "saes" }, h("legend", null, "SAE"),
    A.saes.map((s, i) => h("label", null,
      h("input", { type: "radio", name: "sae", value: i, checked: i === state.sae, onchange: () => showSae(i) }),
      h("span", null, h("b", null, breakable(s.id)), h("small", null, s.hook)),
      h("span", { class: "num" }, "L0 " + fixed(s.metrics.l0, 1)),
      h("span", { class: "num" }, percent(s.metrics.explained_variance)),
      h("span", { class: "meter ev" }, h("i", { "--w": Math.max(0, Math.min(1, s.metrics.explained_variance ?? 0)) })))));
  $("head").replaceChildren(
    h("h1", null, breakable(sae.id)),
    h("p", { class: "facts" }, `reads ${sae.hook} of ${A.model} · ${sae.architecture}, ${count(sae.d_sae, "latent")}`),
    h("dl", { class: "stats" },
      stat("L0", fixed(m.l0, 1), d.l0), stat("Variance explained", percent(m.explained_variance), d.explained_variance),
      stat("FVU", fixed(m.fvu, 4), d.fvu), stat("Tokens", m.tokens.toLocaleString("en"), d.counted)),
    h("details", { class: "what" }, h("summary", null, "What these numbers mean"),
      h("dl", null, Object.entries(d).flatMap(([name, text]) => [h("dt", null, name.replace("_", " ")), h("dd", null, text)]))),
    saes || "",
    h("fieldset", { class: "rank" }, h("legend", { title: d.distinctive }, "Rank latents by"), RANKS.map(([name], i) => h("label", null,
      h("input", { type: "radio", name: "rank", checked: i === state.rank, onchange: () => { state.rank = i; showSae(state.sae); } }), name))));
}

/** Whether a token goes on with the word before it, so that no line breaks between them. */
const joins = (before, token) => /[\p{L}\p{N}'’.,]$/u.test(before) && /^[\p{L}\p{M}\p{N}'’.,;:!?)\]]/u.test(token)
  && !/[\p{sc=Han}\p{sc=Hira}\p{sc=Kana}\p{sc=Hang}\p{sc=Thai}]/u.test(before + token);

function drawSentence(p) {
  const { tokens, counted } = A.prompts[p], found = sae.prompts[p], n = counted.filter(Boolean).length;
  const buttons = tokens.map((token, t) => h("button", {
    type: "button", class: counted[t] ? "t" : "t no", "data-t": t, tabindex: t === 0 ? 0 : -1, "aria-pressed": "false",
  }, visible(token)));
  const box = h("div", { class: "sentence", role: "toolbar", "aria-label": `Sentence ${p + 1}, ${count(tokens.length, "token")}` });
  if (isRtl(tokens)) box.dir = "rtl";
  let word = null, length = 0;
  tokens.forEach((token, t) => {
    if (!word || length > 24 || !joins(tokens[t - 1], token)) {
      word = h("span", { class: "word" });
      length = 0;
      box.append(word);
    }
    word.append(buttons[t]);
    length += token.length;
    if (token.includes("\n")) { box.append(h("br")); word = null; }
  });

  const l0 = found.tokens.map((t) => t.l0), ev = found.tokens.map((t) => t.explained_variance);
  const top = Math.max(1, ...l0.filter((_, t) => counted[t]));
  const kind = (name) => (t) => (counted[t] ? name : "n");
  const strips = [
    bars(l0.map((x) => x / top), kind("b2"), "L0 of each token"),
    bars(ev.map((x) => (x == null ? 0 : x <= 0 ? 0.12 : x)), (t) => (ev[t] <= 0 ? "bad" : kind("b2")(t)), "Variance explained of each token"),
  ];
  const texts = [h("span", null, "0–" + top), h("span", null, "0–100 %")];
  const strip = h("div", { class: "strips" },
    h("span", { title: A.definitions.l0 }, "L0"), strips[0], texts[0],
    h("span", { title: A.definitions.explained_variance }, "Variance explained"), strips[1], texts[1]);
  const at = (e) => {
    const box = e.currentTarget.getBoundingClientRect();
    return Math.max(0, Math.min(tokens.length - 1, Math.floor(((e.clientX - box.left) / box.width) * tokens.length)));
  };
  for (const svg of strips) {
    svg.addEventListener("pointermove", (e) => look(p, at(e)));
    svg.addEventListener("click", (e) => keep(p, at(e)));
  }

  const named = ofSentence(p), largest = Math.max(...named.map((s) => s.max_activation));
  const rows = named.map((s) => {
    const row = h("tr", { onclick: () => choose(s.latent) },
      h("td", null, h("button", { type: "button", class: "lat", "aria-label": "Latent " + s.latent }, s.latent)),
      h("td", { class: "max" }, meter(s.latent, s.max_activation, largest)),
      h("td", { class: "where" }, h("bdi", null, visible(tokens[s.max_token]).trim())),
      h("td", { class: "on" }, `${s.active_tokens} of ${n}`),
      h("td", { class: "trace" }, bars(s.activations.map((a) => a / s.max_activation), kind("b"), `Latent ${s.latent} along the sentence`)));
    row.latent = s.latent;
    return row;
  });
  const table = rows.length
    ? h("table", { class: "lats" }, h("caption", null, RANKS[state.rank][3]),
        h("thead", null, h("tr", null, h("th", { scope: "col" }, "latent"), [["max", "largest"], ["where", "at"], ["on", "active on"], ["trace", "by token"]].map(([name, text]) => h("th", { scope: "col", class: name }, text)))),
        h("tbody", null, rows))
    : h("p", { class: "mute" }, "No latent is active on a token that counts.");

  const legend = h("div", { class: "legend", "aria-live": "off" });
  box.addEventListener("pointerover", (e) => { const b = e.target.closest(".t"); if (b && e.pointerType === "mouse") look(p, +b.dataset.t); });
  box.addEventListener("pointerleave", () => { if (state.kept) look(...state.kept); });
  box.addEventListener("focusin", (e) => { const b = e.target.closest(".t"); if (b) { rove(p, +b.dataset.t); look(p, +b.dataset.t); } });
  box.addEventListener("click", (e) => { const b = e.target.closest(".t"); if (b) keep(p, +b.dataset.t); });
  box.addEventListener("keydown", (e) => onKey(e, p));
  const svgs = [...strips, ...rows.map((r) => r.querySelector("svg"))];
  sentences[p] = { buttons, box, legend, rows, svgs, texts, most: top };
  return h("section", { class: "card", "aria-label": `Sentence ${p + 1}` },
    h("div", { class: "top" }, h("h2", null, `Sentence ${p + 1} `, h("span", { class: "mute", style: "font-weight:400" }, `${count(n, "token")}`)), legend),
    box, strip, table);
}

function isRtl(tokens) {
  const text = tokens.join("");
  const right = (text.match(/[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/g) || []).length;
  return right > (text.replace(/<[a-z]+>/g, "").match(/\p{sc=Latn}/gu) || []).length;
}

function paint() {
  sentences.forEach(({ buttons, legend, rows }, p) => {
    const by = colouring(p), values = by && activations(by.latent, p), { tokens, counted } = A.prompts[p];
    buttons.forEach((button, t) => {
      const value = by ? values[t] : 0;
      button.style.setProperty("--a", counted[t] ? depth(value, by?.max).toFixed(3) : 0);
      button.setAttribute("aria-label", `${visible(tokens[t])}, token ${t}${value > 0 ? ", " + num(value) : ""}${counted[t] ? "" : ", not counted"}`);
    });
    legend.replaceChildren(...(by ? [
      h("span", null, state.latent == null ? "" : values.some((v, t) => v && counted[t]) ? "" : "not active here ",
        h("button", { type: "button", class: "lat", onclick: () => choose(by.latent) }, "latent " + by.latent)),
      h("span", { class: "scale" }, "0", h("span", { class: "ramp" }), num(by.max)),
    ] : []));
    for (const row of rows) {
      const on = by && row.latent === by.latent;
      row.classList.toggle("sel", on);
      row.querySelector("button").setAttribute("aria-pressed", String(on && state.latent != null));
    }
  });
}

function drawToken() {
  if (!state.look) return $("token").replaceChildren();
  const [p, t] = state.look, { tokens, ids, counted } = A.prompts[p], found = sae.prompts[p].tokens[t];
  const top = ofToken(p, t), max = Math.max(...top.map((l) => l.activation));
  const pick = (latent, value, extra) => h("button", {
    type: "button", class: "row pick" + (extra || ""), "aria-pressed": String(latent === state.latent), "data-latent": latent,
    "aria-label": `Latent ${latent}, activation ${num(value)}`, onclick: () => choose(latent),
  }, h("span", { class: "lat" }, latent), meter(latent, value, max, !counted[t]));
  const own = state.latent != null && !top.some((l) => l.latent === state.latent) ? activations(state.latent, p)[t] : 0;
  $("token").replaceChildren(
    h("bdi", { class: "big" }, visible(tokens[t])),
    h("p", { class: "mini" }, h("span", null, `token ${t} of sentence ${p + 1} · id ${ids[t]}${counted[t] ? "" : " · not counted"}`)),
    h("p", { class: "mini" },
      h("span", { title: A.definitions.l0 }, "L0 ", h("b", null, found.l0)),
      h("span", { title: A.definitions.explained_variance }, "explained ", h("b", null, percent(found.explained_variance))),
      h("span", { title: A.definitions.cosine }, "cosine ", h("b", null, fixed(found.cosine, 3)))),
    top.length ? h("h3", null, (state.rank ? "Strongest latents" : "Latents that stand out") + (found.l0 > top.length ? `, ${top.length} of ${found.l0}` : ""))
      : h("p", { class: "mute" }, "No latent is active here."),
    h("ol", null, top.map((l) => h("li", null, pick(l.latent, l.activation))),
      own > 0 ? h("li", { class: "also" }, pick(state.latent, own)) : null));
}

function drawLatent() {
  if (state.latent == null) {
    return $("latent").replaceChildren(h("p", { class: "mute" },
      "Each sentence is coloured by the first latent of its table. Pick a latent, here or there, to colour all of them by it. The tick in a bar is the latent’s mean over all tokens."));
  }
  const trace = traces.get(state.latent), all = hits(state.latent), max = colouring(0).max;
  const line = ({ prompt, token, value, counted }) => {
    const { tokens } = A.prompts[prompt], text = (from, to) => tokens.slice(Math.max(0, from), to).map(visible).join("").replace(/⏎/g, " ");
    const spot = h("bdi", { "--a": counted ? depth(value, max).toFixed(3) : 0 }, visible(tokens[token]));
    return h("li", null, h("button", { type: "button", class: "hit", onclick: () => go(prompt, token), "aria-label": `${num(value)} on ${visible(tokens[token])}, sentence ${prompt + 1}` },
      h("span", { class: "num" }, num(value)), h("span", null, text(token - 3, token).trimStart(), spot, text(token + 1, token + 5))));
  };
  $("latent").replaceChildren(
    h("h2", null, "Latent " + state.latent),
    h("p", { class: "mini" }, h("span", null, "active on ", h("b", null, trace.active_tokens), ` of ${count(sae.metrics.tokens, "token")}`), h("span", null, "mean ", h("b", null, num(trace.mean_activation))), h("span", null, "largest ", h("b", null, num(trace.max_activation)))),
    h("h3", null, "Strongest on"), h("ol", null, all.slice(0, HITS).map(line)),
    h("p", { style: "margin-top:8px" }, h("button", { type: "button", class: "link", onclick: () => choose(null) }, "Back to the first of each table")));
}

// ---- what a reader does ----

function look(p, t) {
  if (state.look) mark(state.look, false);
  state.look = [p, t];
  mark(state.look, true);
  drawToken();
}

function mark([p, t], on) {
  const s = sentences[p], found = sae.prompts[p].tokens[t];
  if (on) s.buttons[t].setAttribute("aria-current", "true"); else s.buttons[t].removeAttribute("aria-current");
  for (const svg of s.svgs) {
    const cursor = svg.querySelector(".at");
    cursor.setAttribute("x", t);
    cursor.setAttribute("width", on ? 1 : 0);
  }
  s.texts[0].textContent = on ? found.l0 : "0–" + s.most;
  s.texts[1].textContent = on ? percent(found.explained_variance) : "0–100 %";
}

/** Keeps a token in the panel, or lets go of it. */
function keep(p, t) {
  const same = state.kept && state.kept[0] === p && state.kept[1] === t;
  if (state.kept) sentences[state.kept[0]].buttons[state.kept[1]].setAttribute("aria-pressed", "false");
  state.kept = same ? null : [p, t];
  if (!same) sentences[p].buttons[t].setAttribute("aria-pressed", "true");
  rove(p, t);
  look(p, t);
}

/** Goes to a token from elsewhere. */
function go(p, t) {
  if (!state.kept || state.kept[0] !== p || state.kept[1] !== t) keep(p, t);
  sentences[p].buttons[t].focus({ preventScroll: true });
  sentences[p].buttons[t].scrollIntoView({ block: "nearest" });
}

/** Tab stops once in each sentence: at this token. */
function rove(p, t) {
  sentences[p].buttons.forEach((button, i) => { button.tabIndex = i === t ? 0 : -1; });
}

/** Colours every sentence by a latent, or, chosen again, each by its own first. */
function choose(latent) {
  state.latent = latent === state.latent ? null : latent;
  paint();
  drawLatent();
  const focused = document.activeElement?.dataset?.latent;
  drawToken();
  if (focused) document.querySelector(`#token [data-latent="${focused}"]`)?.focus();
  remember();
}

function onKey(e, p) {
  if (e.altKey || e.ctrlKey || e.metaKey) return;
  const { buttons, box } = sentences[p], t = buttons.indexOf(e.target.closest(".t"));
  if (t < 0) return;
  const step = box.dir === "rtl" ? -1 : 1, top = ofToken(p, t);
  let to = null;
  if (e.key === "ArrowRight") to = beside(p, t + step);
  else if (e.key === "ArrowLeft") to = beside(p, t - step);
  else if (e.key === "ArrowDown") to = below(p, t, 1);
  else if (e.key === "ArrowUp") to = below(p, t, -1);
  else if (e.key === "Home") to = [p, 0];
  else if (e.key === "End") to = [p, buttons.length - 1];
  else if (/^[1-9]$/.test(e.key) && top[e.key - 1]) choose(top[e.key - 1].latent);
  else if (e.key === "Escape") { if (state.kept) keep(...state.kept); else choose(null); }
  else return;
  e.preventDefault();
  if (to) sentences[to[0]].buttons[to[1]].focus();
}

/** Token t of a sentence, or the nearest of the next sentence (or the one before). */
function beside(p, t) {
  const n = sentences[p].buttons.length;
  if (t < 0) return sentences[p - 1] ? [p - 1, sentences[p - 1].buttons.length - 1] : null;
  if (t >= n) return sentences[p + 1] ? [p + 1, 0] : null;
  return [p, t];
}

/** The token in the next line (or the one before) that lies nearest. */
function below(p, t, way) {
  const at = (el) => { const r = el.getBoundingClientRect(); return [r.left + r.width / 2, r.top + r.height / 2, r.height]; };
  const [x, y, tall] = at(sentences[p].buttons[t]);
  for (const q of [p, p + way]) {
    const next = sentences[q]?.buttons.map((el, i) => [i, ...at(el)]).filter(([, , cy]) => (cy - y) * way > tall / 2);
    if (!next?.length) continue;
    const line = next.reduce((best, c) => ((c[2] - best[2]) * way < 0 ? c : best))[2];
    return [q, next.filter((c) => Math.abs(c[2] - line) < tall / 2).reduce((best, c) => (Math.abs(c[1] - x) < Math.abs(best[1] - x) ? c : best))[0]];
  }
  return null;
}

function showSae(i) {
  sae = A.saes[i];
  traces = new Map(sae.latents.map((trace) => [trace.latent, trace]));
  dense = new Map();
  sentences = [];
  // A latent's number means nothing in another SAE; a token stays where it is.
  if (i !== state.sae) state.latent = null;
  state.sae = i;
  const kept = state.kept, seen = state.look, radio = document.activeElement?.name;
  state.kept = state.look = null;
  drawHead();
  if (radio) document.querySelector(`input[name="${radio}"]:checked`)?.focus();
  $("prompts").replaceChildren(...A.prompts.map((_, p) => drawSentence(p)));
  paint();
  drawLatent();
  if (kept) keep(...kept);
  const first = A.prompts.findIndex((_, p) => ofSentence(p).length);
  const start = seen || (first >= 0 ? [first, ofSentence(first)[0].max_token] : A.prompts[0]?.tokens.length ? [0, 0] : null);
  if (start && !kept) { look(...start); rove(...start); }
  remember();
}

/** The choice stands in the address, so that a reload or a sent link shows the same. */
function remember() {
  const text = new URLSearchParams({ sae: state.sae, ...(state.rank && { rank: state.rank }), ...(state.latent != null && { latent: state.latent }) }).toString();
  try { history.replaceState(null, "", "#" + text); } catch { /* some browsers refuse this for local files */ }
}

$("fold").addEventListener("click", () => {
  const folded = $("panel").classList.toggle("folded");
  $("fold").setAttribute("aria-expanded", String(!folded));
});
document.addEventListener("keydown", (e) => {
  if (e.key === "Escape" && !e.target.closest?.(".sentence")) choose(null);
});

const wanted = new URLSearchParams(location.hash.slice(1));
const latent = Number(wanted.get("latent") ?? NaN);
state.rank = wanted.get("rank") === "1" ? 1 : 0;
$("app").hidden = false;
showSae(A.saes[wanted.get("sae")] ? Number(wanted.get("sae")) : 0);
if (traces.has(latent)) choose(latent);
})();
