"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const get = (id) => document.getElementById(id);
  const MOST = 6; // SAEs side by side
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const hidden = { layer: new Set(), width: new Set() };
  let chosen = data.saes.slice(0, 3).map((_, i) => i);
  let slots = new Map(chosen.map((sae, i) => [sae, i]));
  let logPositions = false;
  let now = 0;

  /** An element with properties (or attributes, where they contain a hyphen) and children. */
  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name.includes("-")) element.setAttribute(name, value);
      else element[name] = value;
    }
    element.append(...children);
    return element;
  }

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  /** From blue at the first layer to orange at the last; SAEs of no layer are grey. */
  function layerColour(slot) {
    if (slot === null) return css("--mute");
    if (data.layers.length < 2) return css("--c0");
    const hue = (215 + (170 * slot) / (data.layers.length - 1)) % 360;
    return dark.matches ? `hsl(${hue}, 75%, 68%)` : `hsl(${hue}, 72%, 42%)`;
  }
  const slotColour = (slot) => css(`--c${slot % MOST}`);
  const colours = {
    layer: (series) => layerColour(series.layer),
    width: (series) => slotColour(series.width),
    sae: (series) => slotColour(slots.get(series.sae)),
  };

  function shown(figure, series) {
    if (figure.colour === "sae") return slots.has(series.sae);
    if (figure.colour === "layer" && hidden.layer.has(series.layer)) return false;
    return !hidden.width.has(series.width);
  }

  const font = getComputedStyle(document.body).fontFamily;

  /** Plotly.js draws into what it is given, so it gets copies. */
  function draw(figure) {
    const place = get(figure.id);
    const series = figure.series.filter((one) => shown(figure, one));
    if (figure.colour === "sae") series.sort((a, b) => chosen.indexOf(a.sae) - chosen.indexOf(b.sae));
    if (figure.id.startsWith("subset-")) series.reverse(); // drawn from the bottom
    const traces = series.map((one) => {
      const colour = colours[figure.colour](one);
      const trace = structuredClone(one.trace);
      trace.marker = { ...trace.marker, color: colour };
      if (trace.line) trace.line.color = colour;
      if (trace.fill) trace.fillcolor = colour + (series.length > 1 ? "20" : "70");
      const overlaid = figure.layout.barmode === "overlay" && series.length > 1;
      if (overlaid) Object.assign(trace, { opacity: 0.5 });
      return trace;
    });
    const layout = structuredClone(figure.layout);
    Object.assign(layout, {
      autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: font, size: 13, color: css("--ink") },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--off"), activecolor: css("--ink") },
      hoverlabel: { align: "left", namelength: -1, bgcolor: css("--card"), bordercolor: css("--off"), font: { family: font, size: 13, color: css("--ink") } },
    });
    for (const axis of [layout.xaxis, layout.yaxis]) {
      axis.gridcolor = css("--line");
      axis.zerolinecolor = css("--off");
      axis.linecolor = css("--off");
      axis.title = { ...axis.title, font: { size: 13, color: css("--mute") }, standoff: 10 };
      axis.tickangle = 0;
      axis.tickfont = { size: 12, color: css("--mute") };
    }
    if (figure.id.startsWith("position-") && logPositions) layout.xaxis.type = "log";
    if (figure.id.startsWith("layers-")) Object.assign(layout.xaxis, data.layers.length > 12 ? {} : { tickmode: "array", tickvals: data.layers });
    // What the reader zoomed into stays; new data begin anew.
    layout.uirevision = figure.colour === "sae" ? `${chosen} ${logPositions}` : "same";
    const config = {
      responsive: true, displaylogo: false,
      modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
      toImageButtonOptions: { format: "svg", filename: figure.id },
    };
    const closest = place.closest("figure");
    closest.hidden = figure.colour === "sae" && traces.length === 0;
    if (closest.hidden) return;
    const first = !place.data;
    Plotly.react(place, traces, layout, config);
    ticks(place);
    if (!first) return;
    place.on("plotly_relayout", () => ticks(place));
    place.on("plotly_click", ({ points: [point] }) => { if (point.id !== undefined) location.hash = `sae-${point.id}`; });
  }

  /** Ticks at 1, 2 and 5 times powers of ten, where a logarithmic axis shows more than one such power. */
  function ticks(place) {
    const { type, range, tickvals } = place.layout.xaxis;
    if (type !== "log") return;
    const [from, to] = range;
    const few = to - from < 1; // plotly.js does that well
    const steps = to - from > (place.clientWidth < 480 ? 2 : 3.5) ? [1] : [1, 2, 5];
    const powers = Array.from({ length: Math.ceil(to) - Math.floor(from) + 1 }, (_, i) => Math.floor(from) + i);
    const values = few ? null : powers.flatMap((power) => steps.map((step) => Number(`${step}e${power}`)));
    if (String(values) === String(tickvals ?? null)) return;
    Plotly.relayout(place, { "xaxis.tickmode": few ? "auto" : "array", "xaxis.tickvals": values, "xaxis.ticktext": values?.map((value) => value.toLocaleString("en")) ?? null });
  }

  const drawAll = (colour) => data.figures.filter((figure) => !colour || figure.colour === colour).forEach(draw);

  // The table: sorted by a heading, filtered by words, with a box for each SAE.
  const table = get("saes");
  const rows = [...table.tBodies[0].rows];

  function sortable() {
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      const button = make("button", { type: "button" }, ...cell.childNodes);
      cell.replaceChildren(button);
      button.addEventListener("click", () => {
        const ascending = cell.ariaSort !== "ascending";
        for (const other of table.tHead.rows[0].cells) other.ariaSort = null;
        cell.ariaSort = ascending ? "ascending" : "descending";
        const numeric = cell.classList.contains("n");
        const key = (row) => {
          const { dataset, textContent } = row.cells[column];
          return numeric ? (dataset.v === undefined ? null : Number(dataset.v)) : textContent;
        };
        const sorted = rows.map((row) => [key(row), row]).sort(([a], [b]) => {
          if (a === null || b === null) return (a === null) - (b === null); // what is not defined comes last, either way
          return (numeric ? a - b : a.localeCompare(b, "en", { numeric: true })) * (ascending ? 1 : -1);
        });
        table.tBodies[0].append(...sorted.map(([, row]) => row));
      });
    });
  }

  function boxes() {
    if (rows.length < 2) return;
    table.caption.append(" A tick puts an SAE beside the others below.");
    rows.forEach((row, sae) => {
      const box = make("input", { type: "checkbox", "aria-label": `${data.saes[sae].id} side by side` });
      box.addEventListener("change", () => choose(sae, box.checked));
      row.cells[0].prepend(box);
    });
  }

  function filter() {
    if (rows.length < 8) return;
    const input = make("input", { type: "search", placeholder: "words of name, site, …" });
    const count = make("span", { className: "note", "aria-live": "polite" });
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/);
      let left = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        left += !row.hidden;
      }
      count.textContent = left === rows.length ? "" : `${left} of ${rows.length}`;
    });
    get("overview-controls").append(make("label", {}, "Filter", input), count);
  }

  // Layers and widths, shown or not.
  function legend(place, kinds) {
    const chips = [];
    for (const [kind, names, colour, sign] of kinds) {
      if (names.length < 2) continue;
      names.forEach((name, slot) => {
        const mark = sign ? make("b", { "aria-hidden": "true" }, sign(slot)) : make("i");
        const chip = make("button", { type: "button", className: "chip", "aria-pressed": "true" }, mark, name);
        const paint = () => {
          if (colour) mark.style.setProperty(sign ? "color" : "--c", colour(slot));
          chip.setAttribute("aria-pressed", String(!hidden[kind].has(slot)));
        };
        chip.addEventListener("click", () => {
          if (!hidden[kind].delete(slot)) hidden[kind].add(slot);
          repaint(); drawAll("layer"); drawAll("width");
        });
        paints.push(paint);
        chips.push(chip);
      });
      if (names.length > 3) {
        const all = make("button", { type: "button", className: "link" }, `all or no ${kind}s`);
        all.addEventListener("click", () => {
          if (hidden[kind].size) hidden[kind].clear();
          else names.forEach((_, slot) => hidden[kind].add(slot));
          repaint(); drawAll("layer"); drawAll("width");
        });
        chips.push(all);
      }
    }
    place?.append(...chips);
  }
  const paints = [];
  const repaint = () => paints.forEach((paint) => paint());

  // The SAEs that are shown side by side.
  function choose(sae, on) {
    chosen = chosen.filter((one) => one !== sae);
    slots.delete(sae);
    if (on) {
      while (chosen.length >= MOST) slots.delete(chosen.shift());
      const free = [...Array(MOST).keys()].find((slot) => ![...slots.values()].includes(slot));
      slots.set(sae, free);
      chosen.push(sae);
    }
    chooser(); drawAll("sae");
  }

  function chooser() {
    rows.forEach((row, sae) => { const box = row.querySelector("input"); if (box) box.checked = slots.has(sae); });
    const place = get("chosen-controls");
    if (!place) return;
    const chips = chosen.map((sae) => {
      const swatch = make("i");
      swatch.style.setProperty("--c", slotColour(slots.get(sae)));
      const { id, dead, provenance } = data.saes[sae];
      const name = make("span", {}, make("bdi", {}, id), make("span", { className: "note" }, `: ${number(dead)} of ${number(provenance.d_sae)} latents dead`));
      if (data.saes.length === 1) return make("span", { className: "chip" }, swatch, name);
      const chip = make("button", { type: "button", className: "chip", title: "take away" }, swatch, name, make("b", { "aria-hidden": "true" }, "×"));
      chip.addEventListener("click", () => choose(sae, false));
      return chip;
    });
    const parts = [...chips];
    if (data.saes.length > chosen.length) {
      const options = data.saes.map((sae, i) => [i, sae.id]).filter(([i]) => !slots.has(i));
      const select = make("select", { "aria-label": "Add an SAE" }, make("option", { value: "" }, "add an SAE …"), ...options.map(([i, id]) => make("option", { value: String(i) }, id)));
      select.addEventListener("change", () => { if (select.value) choose(Number(select.value), true); });
      parts.push(select);
    }
    if (data.figures.some(({ id }) => id.startsWith("position-"))) {
      const box = make("input", { type: "checkbox", checked: logPositions });
      box.addEventListener("change", () => { logPositions = box.checked; drawAll("sae"); });
      parts.push(make("label", { className: "end" }, box, "logarithmic positions"));
    }
    place.replaceChildren(...parts);
  }

  // One SAE: all that is known of it.
  const undefinedSign = "–";
  function number(value) {
    if (value === null || value === undefined) return undefinedSign;
    const size = Math.abs(value);
    const text = Number.isInteger(value) ? value.toLocaleString("en") : size >= 1e-4 && size < 1e7 ? String(Number(value.toPrecision(6))) : value.toExponential(4);
    return text.replaceAll("-", "−");
  }

  function tableOf(caption, headings, body) {
    const head = headings.map(([name, numeric]) => make("th", { scope: "col", className: numeric ? "n" : "" }, name));
    return make("div", { className: "scroll" }, make("table", {}, make("caption", {}, caption), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body)));
  }
  const row = (name, ...cells) => make("tr", {}, make("th", { scope: "row" }, name), ...cells);
  const code = (text) => make("code", {}, text);
  const words = (text) => make("td", { className: "any" }, text);
  const figures = (value) => make("td", { className: "n" }, number(value));
  const plain = (value) => typeof value === "string" ? value : typeof value === "number" ? number(value) : Array.isArray(value) ? value.map(plain).join(", ") : value === null ? undefinedSign : JSON.stringify(value);

  function detail() {
    const sae = data.saes[now];
    rows.forEach((one, i) => one.classList.toggle("now", i === now && rows.length > 1));
    const metrics = data.definitions.map(({ name, unit, definition, source }) =>
      row(code(name), figures(sae.metrics[name]), words(unit), words(definition), words(source)));
    const counts = [["positions that count", sae.tokens], ["losses that count", sae.scored], ["dead latents", sae.dead]]
      .map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, number(value))));
    const body = make("div", { className: "detail" }, make("dl", {}, ...counts), tableOf(
      `Every metric of ${sae.id}`, [["metric"], ["value", true], ["unit"], ["definition"], ["source"]], metrics));
    const subsets = Object.entries(sae.by_subset);
    if (subsets.length) {
      const parts = ["tokens", "scored", "ce_clean", "ce_spliced", "delta_loss", "kl", "mse", "fvu", "l0"];
      body.append(tableOf("By subset of the data", [["subset"], ...parts.map((part) => [part, true])],
        subsets.map(([name, part]) => row(name, ...parts.map((key) => figures(part[key]))))));
    }
    body.append(tableOf("Where the numbers come from", [["what"], ["is"]],
      Object.entries(sae.provenance).map(([name, value]) => row(code(name), words(plain(value))))));
    get("detail-body").replaceChildren(body);
    const select = get("detail-controls").querySelector("select");
    if (select) select.value = String(now);
  }

  function detailChooser() {
    const place = get("detail-controls");
    if (data.saes.length === 1) return;
    const select = make("select", {}, ...data.saes.map((sae, i) => make("option", { value: String(i) }, sae.id)));
    select.addEventListener("change", () => { now = Number(select.value); history.replaceState(null, "", `#sae-${now}`); detail(); });
    place.append(make("label", {}, "SAE", select));
  }

  function follow() {
    const found = /^#sae-(\d+)$/.exec(location.hash);
    if (!found || !data.saes[Number(found[1])]) return;
    now = Number(found[1]);
    detail();
    get("detail").scrollIntoView();
  }

  get("plots").hidden = false;
  get("definitions").querySelector("details").open = false; // they stand beside the values as well
  sortable();
  boxes();
  filter();
  const layers = data.layers.map((layer) => `layer ${layer}`);
  const widths = data.widths.map((width) => `${width} latents`);
  const sign = (slot) => data.symbols[slot];
  legend(get("fidelity-controls"), [["layer", layers, layerColour], ["width", widths, null, sign]]);
  legend(get("layers-controls"), [["width", widths, slotColour, sign]]);
  repaint();
  chooser();
  detailChooser();
  detail();
  drawAll();
  follow();
  addEventListener("hashchange", follow);
  // A link to the SAE that is shown already changes no address.
  table.addEventListener("click", (event) => { if (event.target.closest("a")?.hash === location.hash) follow(); });
  dark.addEventListener("change", () => { repaint(); chooser(); drawAll(); });
})();
