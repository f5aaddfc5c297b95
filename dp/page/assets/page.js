// The page: all runs, one run, one image. Data come in scripts that call dp.receive; each is loaded when it is looked at.
"use strict";

const dp = {
  held: new Map(), waiting: new Map(),
  receive(name, data) { dp.held.set(name, data); },
};

function load(name) {
  if (dp.held.has(name)) return Promise.resolve(dp.held.get(name));
  if (!dp.waiting.has(name)) {
    dp.waiting.set(name, new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `data/${name.split("/").map(encodeURIComponent).join("/")}.js`;
      script.onload = () => resolve(dp.held.get(name));
      script.onerror = () => reject(new Error(`the page lacks the file data/${name}.js: write it again with dp view`));
      document.head.append(script);
    }));
  }
  return dp.waiting.get(name);
}

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value); else if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const main = document.getElementById("main"), where = document.getElementById("where");
const one = (value) => (value === null || value === undefined ? "" : value.toFixed(1));

// ---------------------------------------------------------------- all runs
async function allRuns() {
  const runs = await load("runs");
  where.textContent = "";
  const link = (field, digits) => `<a href="#run/<%- key %>"><%- ${digits ? `value === null ? "" : value.toFixed(1)` : "value"} %></a>`;
  const wide = [["purifier", 150], ["settings", 230], ["attack", 150], ["threat", 100], ["protocol", 120], ["rule", 130], ["images", 65], ["seeds", 60],
    ["standard", 80, 1], ["robust", 70, 1], ["robust 95 %", 95], ["null", 60, 1], ["undefended", 95, 1], ["NFE", 55], ["classifier", 110], ["denoiser", 130], ["changed", 420], ["audited", 210], ["dataset", 80], ["key", 380]];
  const narrow = [["purifier", 120], ["robust", 62, 1], ["standard", 76, 1], ["attack", 120], ["protocol", 110], ["settings", 200], ["images", 60], ["changed", 350], ["key", 350]];
  const columns = (look.narrow() ? narrow : wide).map(([field, width, digits]) => ({ field, title: field, width, template: link(field, digits) }));
  const names = Object.keys(runs[0]);
  const data = Object.fromEntries(names.map((name) => [name, runs.map((run) => run[name])]));
  const texts = runs.map((run) => Object.values(run).join(" ").toLowerCase());
  const count = element("p", { class: "small" }), place = element("div");
  const search = element("input", { type: "search", id: "search", placeholder: "filter, such as: hetero strict", "aria-label": "filter the runs" });
  main.replaceChildren(element("h1", {}, "Runs"),
    element("p", {}, "Accuracies are in percent, by each protocol's first decision rule. Click a column's name to sort, and a number to see its run and command."),
    search, count, place);
  const show = charts.table(place, data, columns, (k) => { location.hash = `run/${runs[k].key}`; });
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = texts.flatMap((text, k) => (words.every((word) => text.includes(word)) ? [k] : []));
    show(kept);
    count.textContent = `${kept.length} of ${runs.length} runs`;
  };
  search.addEventListener("input", filter);
  filter();
}

// ---------------------------------------------------------------- one run
const COLORS = {
  standard: { color: "#0b6e99", dark: "#7cc4e8" }, robust: { color: "#c1440e", dark: "#ff9d6b", dash: "dashed" },
  null: { color: "#666666", dark: "#b0b0b0", dash: "dotted" },
  defended: { color: "#c1440e", dark: "#ff9d6b" }, undefended: { color: "#0b6e99", dark: "#7cc4e8", dash: "dashed" },
};

function drawCurves(curves) {
  for (const [rule, title] of [["worst", "worst of m"], ["vote", "vote of m"]]) {
    const series = Object.entries(curves[rule]).map(([name, c]) => ({
      name: name === "null" ? "null control" : name, ...COLORS[name], x: c.value.map((_, k) => k + 1), y: c.value, low: c.wilson95_low, high: c.wilson95_high,
    }));
    const target = document.getElementById(rule);
    if (series.length) charts.lines(target, title, "samples m", series); else target.textContent = "This run's summary holds no such curve.";
  }
  if (curves.budget) {
    charts.lines(document.getElementById("budget"), "not yet broken", "iterations",
      [{ name: "defended", ...COLORS.robust, dash: "solid", x: curves.budget.iterations, y: curves.budget.percent }]);
  }
  for (const [name, title, top] of [["loss", "cross entropy, nats"], ["gradient_norm", "gradient norm, l2"], ["right", "right samples, percent", 102]]) {
    const target = document.getElementById(name);
    const series = Object.entries(curves.attack).map(([arm, c]) => ({
      name: arm === "null" ? "null control" : arm, ...COLORS[arm], x: c.iterations, y: c[name].map((v) => (v === null ? NaN : v)),
    })).filter((s) => s.y.some((v) => !Number.isNaN(v)));
    if (target && series.length) charts.lines(target, title, "iterations", series, top || null);
  }
}

function choice(label, options, changed) {
  return element("select", { "aria-label": label, onchange: changed }, ...options.map(([value, text]) => element("option", { value }, text)));
}

async function oneRun(key, anchor) {
  const run = await load(key);
  where.textContent = `› ${key}`;
  main.innerHTML = run.html; // written by the template, which escapes every value
  drawCurves(run.curves);
  imageTable(key, run);
  if (anchor) document.getElementById(anchor)?.scrollIntoView();
}

function imageTable(key, run) {
  const rows = run.rows, length = rows.id.length, count = document.getElementById("count");
  const share = (right, k) => (right[k] === null ? "" : `${right[k]} of ${rows.samples[k]}`);
  const data = {
    arm: rows.arm, seed: rows.seed, id: rows.id, label: rows.label, clean_vote: rows.clean_vote, adv_vote: rows.adv_vote,
    clean: rows.id.map((_, k) => rows.clean_right[k]), adv: rows.adv_right,
    clean_text: rows.id.map((_, k) => share(rows.clean_right, k)), adv_text: rows.id.map((_, k) => share(rows.adv_right, k)),
    distance: rows.distance, iterations: rows.iterations, lost_at: rows.lost_at,
  };
  const link = (text) => `<a href="#image/${key}/<%= arm %>/<%= seed %>/<%= id %>"><%= ${text} %></a>`;
  const columns = [
    { field: "id", title: "image", width: 65, template: link("id") }, { field: "label", title: "class", width: 55 },
    { field: "adv", title: "right, attacked", width: 110, template: link("adv_text") }, { field: "clean", title: "right, clean", width: 100, template: link("clean_text") },
    { field: "adv_vote", title: "vote, attacked", width: 110 }, { field: "clean_vote", title: "vote, clean", width: 90 },
    { field: "arm", title: "condition", width: 100 }, { field: "seed", title: "seed", width: 60 },
    { field: "distance", title: "distance", width: 80, template: `<%= value === null ? "" : value.toFixed(4) %>` },
    { field: "iterations", title: "iterations", width: 80 }, { field: "lost_at", title: "broken at", width: 80 },
  ];
  const open = (k) => { location.hash = `image/${key}/${rows.arm[k]}/${rows.seed[k]}/${rows.id[k]}`; };
  const show = charts.table(document.getElementById("rows"), data, columns, open);
  const distinct = (values) => [...new Set(values)].sort((a, b) => (a > b ? 1 : -1)).map((v) => [String(v), String(v)]);
  const update = () => {
    const [arm, seed, label, result] = selects.map((s) => s.value), kept = [];
    for (let k = 0; k < length; k++) {
      const wrong = rows.adv_right[k] < rows.samples[k];
      if ((!arm || rows.arm[k] === arm) && (!seed || String(rows.seed[k]) === seed) && (!label || String(rows.label[k]) === label)
        && (!result || (result === "wrong") === wrong)) kept.push(k);
    }
    show(kept);
    count.textContent = `${kept.length} of ${length} lines`;
  };
  const selects = [
    choice("condition", [["defended", "defended"], ["undefended", "undefended"], ["null", "null control"], ["", "every condition"]], update),
    choice("seed", [["", "every seed"], ...distinct(rows.seed)], update), choice("class", [["", "every class"], ...distinct(rows.label)], update),
    choice("result", [["", "every result"], ["wrong", "a sample is wrong, attacked"], ["right", "all samples are right, attacked"]], update),
  ];
  document.getElementById("filters").append(...selects);
  update();
}

// ---------------------------------------------------------------- one image
function picture(address, caption, extra) {
  const shown = element("div", {}, element("img", { src: address, alt: caption }), caption);
  if (extra) shown.append(element("br"), extra);
  return shown;
}

function predictions(title, classes, label, purified) {
  const parts = classes.map((c, k) => {
    const verdict = element("span", { class: c === label ? "right" : "wrong" }, `${c} ${c === label ? "right" : "wrong"}`);
    return purified ? picture(purified[k], `sample ${k + 1}`, verdict) : element("div", {}, `sample ${k + 1}`, element("br"), verdict);
  });
  const right = classes.filter((c) => c === label).length;
  return [element("h2", {}, `${title}: ${right} of ${classes.length} samples are right`), element("div", { class: "pictures samples" }, ...parts)];
}

async function oneImage(key, arm, seed, id) {
  const run = await load(key), rows = run.rows;
  const k = rows.id.findIndex((v, n) => v === Number(id) && rows.arm[n] === arm && rows.seed[n] === Number(seed));
  if (k < 0) throw new Error(`the run ${key} has no image ${id} of ${arm}, seed ${seed}`);
  const position = run.ids.indexOf(Number(id)), block = Math.floor(position / run.block), shown = {};
  const chunks = [];
  if (run.clean) chunks.push(`${run.clean}/clean-${block}`);
  if (run.clean && !run.mask) chunks.push(`${key}/clean-${block}`);
  if (run.clean && !run.archived) chunks.push(`${key}/${arm}-${seed}-${block}`);
  for (const chunk of await Promise.all(chunks.map(load))) Object.assign(shown, chunk[id] || {});
  where.replaceChildren("› ", element("a", { href: `#run/${key}` }, key), ` › image ${id}`);
  const go = (step, text) => {
    const next = run.ids[position + step];
    return next === undefined ? "" : element("a", { href: `#image/${key}/${arm}/${seed}/${next}` }, text);
  };
  const label = rows.label[k], parts = [];
  const add = (name, caption) => { if (shown[name]) parts.push(picture(shown[name], caption)); };
  add("clean", "clean"); add("attacked", "attacked"); add("difference", "difference x 10, gray is none");
  if (arm !== "undefended") { add("clean_mask", "mask of the clean image, white: strong noise"); add("attacked_mask", "mask of the attacked image"); }
  const notes = [];
  if (run.note) notes.push(run.note);
  if (run.archived) notes.push("This run is archived, so it holds no attacked image. The command of the run computes it again; then dp view shows it.");
  if (run.clean && run.mask && arm === "defended") notes.push(run.mask);
  if (run.clean && !run.archived && arm === "defended" && !shown.attacked_purified) {
    notes.push(`The purified samples of this image were not computed; the page has those of ${run.purified} images of the first seed. dp view --purify N computes those of the first N.`);
  }
  if (shown.attacked_purified && run.unequal) {
    notes.push(`The purified samples were computed again when the page was written. ${run.unequal} of those that the page has got another class than in the run (the classes below): the code has changed since, or this machine rounds differently.`);
  }
  main.replaceChildren(element("h1", {}, `Image ${id}, class ${label}`),
    element("p", {}, `Condition ${arm === "null" ? "null control (random noise)" : arm}, seed ${seed}; distance ${rows.distance[k] === undefined || rows.distance[k] === null ? "not recorded" : rows.distance[k].toFixed(4)}; ${rows.iterations[k]} iterations. `,
      element("a", { href: `#run/${key}/command` }, "Its run and command")),
    element("nav", {}, go(-1, "previous image"), go(1, "next image")),
    element("div", { class: "pictures" }, ...parts), ...notes.map((note) => element("p", { class: "small" }, note)),
    ...predictions("Attacked", rows.adv[k], label, shown.attacked_purified),
    ...(rows.clean[k].length ? predictions("Clean", rows.clean[k], label, shown.clean_purified) : []));
}

// ---------------------------------------------------------------- the address
async function route() {
  const [what, ...rest] = location.hash.slice(1).split("/").map(decodeURIComponent);
  try {
    if (what === "run") await oneRun(...rest); else if (what === "image") await oneImage(...rest); else await allRuns();
    if (!rest[1] || what === "image") scrollTo(0, 0);
  } catch (error) {
    main.replaceChildren(element("p", { class: "wrong" }, String(error.message)));
  }
  document.body.dataset.ready = location.hash || "#";
}
addEventListener("hashchange", route);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", route);
route();
