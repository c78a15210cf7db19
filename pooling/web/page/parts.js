// What the page shows of a view: each function returns elements as values, see `h`.

const STATES = {  // the sign differs as well as the colour; the lower, the more urgent
  down: {sign: "✕", css: "bad", rank: 0}, exhausted: {sign: "▲", css: "warn", rank: 1},
  up: {sign: "●", css: "good", rank: 2}, closed: {sign: "○", css: "dim", rank: 3},
};
const GRAVE = new Set(["outage", "timeout", "refused", "leak", "orphan", "resets"]);
const HOUR = 60, FEW = 10, STALE = 10;  // points of a chart; rows before "show all"; seconds

const COLUMNS = [
  {id: "name", title: "Pool", value: pool => pool.name.toLowerCase(), css: "name"},
  {id: "state", title: "State", value: pool => pool.rank, css: "status"},
  {id: "in_use", title: "In use", value: pool => pool.in_use, most: true, css: "use"},
  {id: "waiting", title: "Waiting", value: pool => pool.waiting, most: true, css: "num"},
  {id: "oldest", title: "Oldest wait", value: pool => pool.oldest_wait, most: true, css: "num"},
  {id: "leases", title: "Leases/s", value: pool => pool.leases_per_second, most: true, css: "num"},
  {id: "wait", title: "Wait p99", under: "p50", value: pool => pool.wait.p99, most: true, css: "num"},
  {id: "use", title: "Use p99", under: "p50", value: pool => pool.use.p99, most: true, css: "num"},
  {id: "timeouts", title: "Timeouts/min", value: pool => pool.timeouts_per_minute, most: true, css: "num"},
];

function stateOf(pool) {
  return STATES[pool.state] || {sign: "●", css: "dim", rank: 4};
}

function compare(a, b) {
  if (typeof a === "string") return a < b ? -1 : Number(a > b);
  return (a ?? -1) - (b ?? -1);
}

function sorted(pools, sort) {
  const column = COLUMNS.find(one => one.id === sort.by), sense = sort.down ? -1 : 1;
  return [...pools].sort((a, b) => sense * compare(column.value(a), column.value(b)) || compare(a.name, b.name));
}

// -- small parts -----------------------------------------------------------------------------------

function badge(pool) {
  const state = stateOf(pool);
  return h("span", {class: `badge ${state.css}`}, h("span", {"aria-hidden": "true"}, state.sign), " ", pool.state);
}

function bar(pool) {
  const max = Math.max(pool.max_size || 0, pool.size, pool.in_use, 1), width = n => (100 * n / max).toFixed(2);
  const used = Math.min(pool.in_use, max), idle = Math.min(pool.idle, max - used);
  return h("svg", {class: `bar ${pool.state === "exhausted" ? "full" : ""}`, viewBox: "0 0 100 8",
                   preserveAspectRatio: "none", "aria-hidden": "true"},
    h("rect", {class: "track", x: 0, y: 0, width: 100, height: 8}),
    h("rect", {class: "idle", x: width(used), y: 0, width: width(idle), height: 8}),
    h("rect", {class: "used", x: 0, y: 0, width: width(used), height: 8}));
}

function paths(values, top, height) {
  let line = "", area = "", from = null;
  const close = at => { if (from !== null) area += `L${at} ${height}L${from} ${height}Z`; from = null; };
  values.forEach((value, at) => {
    if (value === null || value === undefined) return close(at - 1);
    const y = (height - (height - 2) * Math.min(1, value / top) - 1).toFixed(2);
    const begins = from === null;
    if (begins) from = at;
    line += begins ? `M${at} ${y}h.01` : `L${at} ${y}`;
    area += `${begins ? "M" : "L"}${at} ${y}`;
  });
  close(values.length - 1);
  return {line, area};
}

function chart(values, {label, format, limit = 0, height = 24, css = ""}) {
  const known = (values || []).filter(one => one !== null && one !== undefined), peak = Math.max(0, ...known);
  const top = Math.max(limit, peak) || 1, drawn = paths(values || [], top, height);
  const said = known.length ? `highest ${format(peak)}, last ${format(known[known.length - 1])}` : "nothing recorded";
  return h("svg", {class: `chart ${css}`, viewBox: `0 0 ${HOUR - 1} ${height}`, preserveAspectRatio: "none", role: "img",
                   "aria-label": `${label}, last hour: ${said}`},
    h("line", {class: "base", x1: 0, x2: HOUR - 1, y1: height - 1, y2: height - 1}),
    limit > 0 && h("line", {class: "limit", x1: 0, x2: HOUR - 1, y1: 1 + (height - 2) * (1 - limit / top), y2: 1 + (height - 2) * (1 - limit / top)}),
    h("path", {class: "area", d: drawn.area}), h("path", {class: "line", d: drawn.line}));
}

function figure(pool, title, values, format, css, limit) {
  const known = (values || []).filter(one => one !== null && one !== undefined);
  return h("figure", {key: title},
    h("figcaption", {}, h("span", {}, title), h("span", {class: "dim"}, known.length ? `peak ${format(Math.max(...known))}` : "no data")),
    chart(values, {label: `${title} of ${pool.name}`, format, height: 48, css: `tall ${css}`, limit}),
    h("div", {class: "axis"}, h("span", {}, clock(pool.minutes.start)), h("span", {}, "now")));
}

function table(name, columns, rows, none, css = "") {
  if (!rows.length) return h("p", {class: "none"}, none);
  return h("table", {class: `plain ${css}`, role: "table", "aria-label": name},
    h("thead", {role: "rowgroup"}, h("tr", {role: "row"},
      columns.map(([title, css]) => h("th", {role: "columnheader", scope: "col", class: css}, title)))),
    h("tbody", {role: "rowgroup"}, rows.map(row => h("tr", {role: "row", key: row.key},
      row.cells.map((cell, at) => h("td", {role: "cell", class: columns[at][1], "data-label": columns[at][0]}, cell))))));
}

function more(shown, all, id, state, redraw) {
  if (all <= FEW) return null;
  const open = state.all.has(id);
  const toggle = () => { if (!state.all.delete(id)) state.all.add(id); redraw(); };
  return h("button", {class: "more", type: "button", "aria-expanded": String(open), onclick: toggle}, open ? `Show the first ${FEW}` : `Show all ${count(all)}`);
}

// -- pools -----------------------------------------------------------------------------------------

function poolSection(view, state, redraw) {
  if (!view.pools.length) return h("section", {key: "pools"}, h("p", {class: "none"}, "No pool is in use yet. Each appears here with its first use."));
  const text = state.filter.trim().toLowerCase();
  const pools = sorted(view.pools, state.sort).filter(pool => !text || pool.name.toLowerCase().includes(text));
  const order = id => { state.sort = {by: id, down: state.sort.by === id ? !state.sort.down : Boolean(COLUMNS.find(one => one.id === id).most)}; redraw(); };
  const heads = COLUMNS.map(column => {
    const active = state.sort.by === column.id, arrow = active ? (state.sort.down ? "▼" : "▲") : "";
    return h("th", {role: "columnheader", scope: "col", class: column.css, "aria-sort": active ? (state.sort.down ? "descending" : "ascending") : null},
      h("button", {type: "button", id: `sort-${column.id}`, onclick: () => order(column.id)}, column.title,
        h("span", {class: "arrow", "aria-hidden": "true"}, arrow)),
      column.under && h("small", {}, column.under));
  });
  const search = view.pools.length > 12 && h("label", {class: "search"}, "Find ",
    h("input", {type: "search", autocomplete: "off", spellcheck: "false", oninput: event => { state.filter = event.target.value; redraw(); }}));
  const choice = h("label", {class: "choice"}, "Sort by ",
    h("select", {value: state.sort.by, onchange: event => { state.sort = {by: "", down: false}; order(event.target.value); }},
      COLUMNS.map(column => h("option", {value: column.id}, column.title))));
  return h("section", {key: "pools", "aria-labelledby": "pools"},
    h("div", {class: "head"}, h("h2", {id: "pools"}, plural(view.pools.length, "pool")), search, choice),
    h("table", {class: "pools", role: "table", "aria-labelledby": "pools"},
      h("thead", {role: "rowgroup"}, h("tr", {role: "row"}, heads,
        h("th", {role: "columnheader", scope: "col", class: "hour"}, "In use, last hour"))),
      pools.map(pool => poolRows(pool, view, state, redraw))),
    !pools.length && h("p", {class: "none"}, `No pool is called “${text}”.`));
}

function poolRows(pool, view, state, redraw) {
  const open = state.open.has(pool.name), id = `more-${encodeURIComponent(pool.name)}`;
  const toggle = () => { if (!state.open.delete(pool.name)) state.open.add(pool.name); redraw(); };
  const cell = (title, css, ...content) => h("td", {role: "cell", class: css, "data-label": title}, content);
  const two = (title, pair) => cell(title, "num", h("span", {}, duration(pair.p99)), h("small", {class: "p50"}, duration(pair.p50)));
  const some = (value, text, css) => h("span", {class: value > 0 ? css : "zero"}, text);
  const limit = pool.max_size ? count(pool.max_size) : "no limit";
  const error = pool.last_error && h("tr", {key: "error", role: "row", class: open ? "error whole" : "error"}, h("td", {role: "cell", colspan: COLUMNS.length + 1},
    h("span", {class: pool.state === "down" ? "bad" : "dim"}, "Last error"), pool.last_error_at && h("time", {class: "dim"}, ` ${ago(view.time - pool.last_error_at)}`),
    h("code", {title: pool.last_error}, pool.last_error)));
  return h("tbody", {key: pool.name, role: "rowgroup", class: `is-${stateOf(pool).css}`, "data-pool": pool.name, "data-state": pool.state},
    h("tr", {key: "main", role: "row", class: "main"},
      h("td", {role: "cell", class: "name"},
        h("button", {class: "open", type: "button", "aria-expanded": String(open), "aria-controls": open ? id : null, onclick: toggle},
          h("span", {class: "arrow", "aria-hidden": "true"}, open ? "▾" : "▸"), h("span", {class: "label", title: pool.name}, pool.name)),
        h("small", {}, pool.kind, pool.processes > 1 && `, ${plural(pool.processes, "process", "processes")}`)),
      cell(null, "status", badge(pool)),
      h("td", {role: "cell", class: "use", "data-label": "In use"}, bar(pool),
        h("span", {class: "counts"}, h("span", {}, h("b", {}, count(pool.in_use)), " of ", limit), h("small", {}, `${count(pool.idle)} idle`))),
      cell("Waiting", "num", some(pool.waiting, count(pool.waiting), "warn strong")),
      cell("Oldest wait", "num", some(pool.oldest_wait, duration(pool.oldest_wait), "warn strong")),
      cell("Leases/s", "num", some(pool.leases_per_second ?? 1, rate(pool.leases_per_second), "")),
      two("Wait p99 / p50", pool.wait), two("Use p99 / p50", pool.use),
      cell("Timeouts/min", "num", some(pool.timeouts_per_minute, rate(pool.timeouts_per_minute), "bad strong")),
      h("td", {role: "cell", class: "hour", "data-label": "In use, last hour"}, chart(pool.minutes.in_use, {label: `In use of ${pool.name}`, format: rate, limit: pool.max_size || 0}))),
    error,
    open && h("tr", {key: "more", role: "row", class: "more", id}, h("td", {role: "cell", colspan: COLUMNS.length + 1}, details(pool, view))));
}

function details(pool, view) {
  const minutes = pool.minutes, rows = pool.by_process.map(one => ({key: one.pid, cells: [one.pid, count(one.in_use), count(one.size), count(one.waiting)]}));
  return [
    h("div", {class: "figures"},
      figure(pool, "In use", minutes.in_use, rate, "", pool.max_size || 0), figure(pool, "Waiting", minutes.waiting, rate, "warn"),
      figure(pool, "Leases per minute", minutes.leases, count, ""), figure(pool, "Wait p99", minutes.p99_wait, duration, "warn"),
      figure(pool, "Timeouts per minute", minutes.timeouts, count, "bad")),
    h("div", {class: "pair"},
      h("div", {}, h("h3", {}, "Holders"), holderTable(pool.holders.map(one => ({...one, pool: pool.name})), view, false)),
      h("div", {}, h("h3", {}, "By process"), table(`${pool.name} by process`, [["Process", "num"], ["In use", "num"], ["Size", "num"], ["Waiting", "num"]], rows, "No process uses it now."))),
  ];
}

// -- the other sections ----------------------------------------------------------------------------

function holderTable(holders, view, pools) {
  const columns = [["For", "num"], ["Where", "where"], ...(pools ? [["Pool", "text"]] : [])];
  const rows = holders.map(one => ({
    key: [one.pool, one.pid, one.thread, one.since, one.where].join(" "),
    cells: [view.time - one.since < 1 ? "< 1 s" : duration(view.time - one.since),
      [h("code", {}, one.where), h("small", {}, `${one.thread}, process ${one.pid}`)], ...(pools ? [one.pool] : [])],
  }));
  return table("Holders", columns, rows, "Nothing is held at the moment.");
}

function holderSection(view, state, redraw) {
  const all = view.pools.flatMap(pool => pool.holders.map(one => ({...one, pool: pool.name}))).sort((a, b) => a.since - b.since);
  const shown = state.all.has("holders") ? all : all.slice(0, FEW);
  return h("section", {key: "holders", class: "half", "aria-labelledby": "holders"},
    h("div", {class: "head"}, h("h2", {id: "holders"}, "Holders"), h("span", {class: "dim"}, "longest first")),
    holderTable(shown, view, true), more(shown.length, all.length, "holders", state, redraw));
}

function eventSection(view, state, redraw) {
  const all = view.events, shown = state.all.has("events") ? all : all.slice(0, FEW);
  const facts = event => {
    const seconds = Math.max(0, (event.end ?? view.time) - event.start), often = event.count > 1 ? `${count(event.count)} times` : "";
    const whose = view.processes.length > 1 && `process ${event.pid}`;
    const long = event.end === null ? `ongoing for ${duration(seconds)}` : seconds >= 1 && !often && `for ${duration(seconds)}`;
    return [long, often && event.end !== null && seconds >= 1 ? `${often} in ${duration(seconds)}` : often, whose].filter(Boolean).join(", ");
  };
  const items = shown.map(event => h("li", {key: [event.pool, event.kind, event.start, event.pid, event.text].join(" "), class: event.end === null ? "lasting" : null},
    h("time", {}, day(event.start, view.time)), h("span", {class: "what"}, h("b", {class: GRAVE.has(event.kind) ? "bad" : "warn"}, view.words[event.kind] || event.kind), " ", event.pool),
    h("span", {class: "dim facts"}, facts(event)),
    event.text && h("code", {}, event.text)));
  return h("section", {key: "events", class: "half", "aria-labelledby": "events"},
    h("div", {class: "head"}, h("h2", {id: "events"}, "Events"), h("span", {class: "dim"}, "newest first")),
    items.length ? h("ul", {class: "events"}, items) : h("p", {class: "none"}, "No outage, exhaustion, leak or drain so far."),
    more(shown.length, all.length, "events", state, redraw));
}

function processSection(view, state, redraw) {
  const all = [...view.processes].sort((a, b) => a.pid - b.pid), shown = state.all.has("processes") ? all : all.slice(0, FEW);
  const held = {}, columns = [["Process", "num"], ["Command", "where"], ["In use", "num"], ["CPU", "num"], ["Memory", "num"], ["Threads", "num"], ["Descriptors", "num"], ["Running for", "num"], ["Figures from", "num"]];
  for (const pool of view.pools) for (const one of pool.by_process) held[one.pid] = (held[one.pid] || 0) + one.in_use;
  const rows = shown.map(one => ({key: one.pid, cells: [
    one.pid, h("code", {}, one.command || NONE), count(held[one.pid] || 0), one.cpu === null || one.cpu === undefined ? NONE : `${Math.round(100 * one.cpu)} %`,
    bytes(one.memory), count(one.threads), count(one.descriptors), duration(one.started ? view.time - one.started : null),
    h("span", {class: one.age > STALE ? "warn strong" : null}, ago(one.age))]}));
  return h("section", {key: "processes", "aria-labelledby": "processes"},
    h("div", {class: "head"}, h("h2", {id: "processes"}, "Processes"), h("span", {class: "dim"}, plural(all.length, "process", "processes"))),
    table("Processes", columns, rows, "No process of the application is running.", "stack"), more(shown.length, all.length, "processes", state, redraw));
}

function totals(view) {
  const sum = field => view.pools.reduce((total, pool) => total + (pool[field] || 0), 0);
  const oldest = Math.max(0, ...view.pools.map(pool => pool.oldest_wait || 0));
  const tile = (value, label, css) => h("div", {key: label, class: "tile"}, h("b", {class: css}, value), h("span", {}, label));
  return h("section", {key: "totals", class: "tiles", "aria-label": "All pools together"},
    tile(count(sum("in_use")), `in use, of ${count(sum("max_size"))}`), tile(count(sum("waiting")), "waiting", sum("waiting") ? "warn" : ""),
    tile(duration(oldest), "oldest wait", oldest ? "warn" : ""), tile(rate(sum("leases_per_second")), "leases per second"),
    tile(rate(sum("timeouts_per_minute")), "timeouts per minute", sum("timeouts_per_minute") ? "bad" : ""));
}
