// The sections of the page, from a view.

const GRAVE = new Set(["outage", "timeout", "refused", "leak", "orphan", "resets"]);  // the others are worth knowing
const STALE = 10;  // seconds

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

function compare(a, b) {
  if (typeof a === "string") return a < b ? -1 : Number(a > b);
  return (a ?? -1) - (b ?? -1);
}

function sorted(pools, sort) {
  const {value} = COLUMNS.find(one => one.id === sort.by), sense = sort.down ? -1 : 1;
  return [...pools].sort((a, b) => sense * compare(value(a), value(b)) || compare(a.name, b.name));
}

function totals(view) {
  const sum = field => view.pools.reduce((total, pool) => total + (pool[field] || 0), 0);
  const oldest = Math.max(0, ...view.pools.map(pool => pool.oldest_wait || 0));
  const tile = (value, label, css) =>
    h("div", {key: label, class: "tile"}, h("b", {class: css}, value), h("span", {}, label));
  return h("section", {key: "totals", class: "tiles", "aria-label": "All pools together"},
    tile(count(sum("in_use")), `in use, of ${count(sum("max_size"))}`),
    tile(count(sum("waiting")), "waiting", sum("waiting") ? "warn" : ""),
    tile(duration(oldest), "oldest wait", oldest ? "warn" : ""),
    tile(rate(sum("leases_per_second")), "leases per second"),
    tile(rate(sum("timeouts_per_minute")), "timeouts per minute", sum("timeouts_per_minute") ? "bad" : ""));
}

// -- pools -----------------------------------------------------------------------------------------

function poolSection(view, state, redraw) {
  if (!view.pools.length) {
    const none = "No pool is in use yet. Each appears here with its first use.";
    return h("section", {key: "pools"}, h("p", {class: "none"}, none));
  }
  const text = state.filter.trim().toLowerCase();
  const pools = sorted(view.pools, state.sort).filter(pool => pool.name.toLowerCase().includes(text));
  const sortBy = (id, again) => {
    const most = Boolean(COLUMNS.find(one => one.id === id).most);
    state.sort = {by: id, down: again && state.sort.by === id ? !state.sort.down : most};
    redraw();
  };
  const find = event => {
    state.filter = event.target.value;
    redraw();
  };
  const search = view.pools.length > 12 && h("label", {class: "search"}, "Find ",
    h("input", {type: "search", autocomplete: "off", spellcheck: "false", oninput: find}));
  const choice = h("label", {class: "choice"}, "Sort by ",
    h("select", {value: state.sort.by, onchange: event => sortBy(event.target.value, false)},
      COLUMNS.map(column => h("option", {value: column.id}, column.title))));
  return h("section", {key: "pools", "aria-labelledby": "pools"},
    h("div", {class: "head"}, h("h2", {id: "pools"}, plural(view.pools.length, "pool")), search, choice),
    h("table", {class: "pools", role: "table", "aria-labelledby": "pools"},
      h("thead", {role: "rowgroup"}, h("tr", {role: "row"},
        COLUMNS.map(column => poolHead(column, state.sort, () => sortBy(column.id, true))),
        h("th", {role: "columnheader", scope: "col", class: "hour"}, "In use, last hour"))),
      pools.map(pool => poolRows(pool, view, state, redraw))),
    !pools.length && h("p", {class: "none"}, `No pool is called “${text}”.`));
}

function poolHead(column, sort, onclick) {
  const active = sort.by === column.id, arrow = active ? (sort.down ? "▼" : "▲") : "";
  const order = active ? (sort.down ? "descending" : "ascending") : null;
  return h("th", {role: "columnheader", scope: "col", class: column.css, "aria-sort": order},
    h("button", {type: "button", id: `sort-${column.id}`, onclick}, column.title,
      h("span", {class: "arrow", "aria-hidden": "true"}, arrow)),
    column.under && h("small", {}, column.under));
}

function poolRows(pool, view, state, redraw) {
  const open = state.open.has(pool.name), id = `more-${encodeURIComponent(pool.name)}`;
  const toggle = () => {
    if (!state.open.delete(pool.name)) state.open.add(pool.name);
    redraw();
  };
  const wide = content => h("td", {role: "cell", colspan: COLUMNS.length + 1}, content);
  return h("tbody", {key: pool.name, role: "rowgroup", class: `is-${stateOf(pool).css}`, "data-pool": pool.name,
                     "data-state": pool.state},
    poolRow(pool, open, id, toggle),
    pool.last_error
      && h("tr", {key: "error", role: "row", class: open ? "error whole" : "error"}, wide(lastError(pool, view))),
    open && h("tr", {key: "more", role: "row", class: "more", id}, wide(details(pool, view))));
}

function poolRow(pool, open, id, toggle) {
  const cell = (title, css, ...content) => h("td", {role: "cell", class: css, "data-label": title}, content);
  const number = (title, value, text, css) => cell(title, "num", h("span", {class: value > 0 ? css : "zero"}, text));
  const pair = (title, {p50, p99}) =>
    cell(title, "num", h("span", {}, duration(p99)), h("small", {class: "p50"}, duration(p50)));
  const limit = pool.max_size ? count(pool.max_size) : "no limit";
  return h("tr", {key: "main", role: "row", class: "main"},
    cell(null, "name",
      h("button", {type: "button", "aria-expanded": String(open), "aria-controls": open ? id : null, onclick: toggle},
        h("span", {class: "arrow", "aria-hidden": "true"}, open ? "▾" : "▸"),
        h("span", {class: "label", title: pool.name}, pool.name)),
      h("small", {}, pool.kind, pool.processes > 1 && `, ${plural(pool.processes, "process", "processes")}`,
        pool.circuits_open > 0 && `, ${plural(pool.circuits_open, "circuit")} open`,
        pool.role && `, ${role(pool.role)}`,
        pool.budget && `, budget ${count(pool.budget[0])} of ${count(pool.budget[1])}`)),
    cell(null, "status", badge(pool)),
    cell("In use", "use", bar(pool), h("span", {class: "counts"},
      h("span", {}, h("b", {}, count(pool.in_use)), " of ", limit), h("small", {}, `${count(pool.idle)} idle`))),
    number("Waiting", pool.waiting, count(pool.waiting), "warn strong"),
    number("Oldest wait", pool.oldest_wait, duration(pool.oldest_wait), "warn strong"),
    number("Leases/s", pool.leases_per_second, rate(pool.leases_per_second), null),
    pair("Wait p99 / p50", pool.wait), pair("Use p99 / p50", pool.use),
    number("Timeouts/min", pool.timeouts_per_minute, rate(pool.timeouts_per_minute), "bad strong"),
    cell("In use, last hour", "hour",
      chart(pool.minutes.in_use, {label: `In use of ${pool.name}`, format: rate, limit: pool.max_size || 0})));
}

function role({name, lag}) {
  return lag > 0 && name !== "primary" ? `${name}, ${duration(lag)} behind` : name;
}

function lastError(pool, view) {
  return [
    h("span", {class: pool.state === "down" ? "bad" : "dim"}, "Last error"),
    pool.last_error_at && h("time", {class: "dim"}, ` ${ago(view.time - pool.last_error_at)}`),
    h("code", {title: pool.last_error}, pool.last_error),
  ];
}

function details(pool, view) {
  const minutes = pool.minutes, columns = ["Process", "In use", "Size", "Waiting"].map(title => [title, "num"]);
  const rows = pool.by_process.map(one => (
    {key: one.pid, cells: [one.pid, count(one.in_use), count(one.size), count(one.waiting)]}));
  return [
    h("div", {class: "figures"},
      figure(pool, "In use", minutes.in_use, rate, "", pool.max_size || 0),
      figure(pool, "Waiting", minutes.waiting, rate, "warn"),
      figure(pool, "Leases per minute", minutes.leases, count, ""),
      figure(pool, "Wait p99", minutes.p99_wait, duration, "warn"),
      figure(pool, "Timeouts per minute", minutes.timeouts, count, "bad")),
    h("div", {class: "pair"},
      h("div", {}, h("h3", {}, "Holders"), holderTable(holdersOf(pool), view, false)),
      h("div", {}, h("h3", {}, "By process"),
        table(`${pool.name} by process`, columns, rows, "No process uses it now."))),
    pool.servers.length > 0 && h("div", {}, h("h3", {}, "Servers"), serverTable(pool)),
  ];
}

function serverTable(pool) {
  const columns = [["Server", "where"], ["Zone", "text"],
    ...["In use", "Waiting", "Latency", "Failing"].map(title => [title, "num"]), ["State", "text"]];
  const rows = pool.servers.map(one => {
    const states = [one.ejected > 0 && "ejected", one.circuits_open > 0 && "circuit open"].filter(Boolean);
    return {key: one.name, cells: [
      h("code", {}, one.name), one.zone, count(one.in_use), count(one.waiting), duration(one.latency),
      `${Math.round(one.failing * 100)} %`,
      h("span", {class: states.length ? "warn strong" : ""}, states.join(", ") || "in service"),
    ]};
  });
  return table(`Servers of ${pool.name}`, columns, rows, "");
}

// -- holders, events, processes --------------------------------------------------------------------

function holdersOf(pool) {
  return pool.holders.map(one => ({...one, pool: pool.name}));
}

function holderTable(holders, view, pools) {
  const columns = [["For", "num"], ["Where", "where"], ...(pools ? [["Pool", "text"]] : [])];
  const rows = holders.map(one => ({
    key: [one.pool, one.pid, one.thread, one.since, one.where].join(" "),
    cells: [
      duration(one.seconds),
      [h("code", {}, one.where), h("small", {}, `${one.thread}, process ${one.pid}`)],
      ...(pools ? [one.pool] : []),
    ],
  }));
  return table("Holders", columns, rows, "Nothing is held at the moment.");
}

function holderSection(view, state, redraw) {
  const all = view.pools.flatMap(holdersOf).sort((a, b) => b.seconds - a.seconds);
  return section("holders", "Holders", "longest first", null,
    holderTable(firstOf(all, "holders", state), view, true), more(all, "holders", state, redraw));
}

function eventSection(view, state, redraw) {
  const items = firstOf(view.events, "events", state).map(event => (
    h("li", {key: [event.pool, event.kind, event.start, event.pid, event.text].join(" ")},
      h("time", {}, day(event.start, view.time)),
      h("span", {class: "what"},
        h("b", {class: GRAVE.has(event.kind) ? "bad" : "warn"}, view.words[event.kind] || event.kind), " ", event.pool),
      h("span", {class: "dim facts"}, factsOf(event, view)),
      event.text && h("code", {}, event.text))));
  return section("events", "Events", "newest first", null,
    items.length ? h("ul", {class: "events"}, items)
      : h("p", {class: "none"}, "No outage, exhaustion, leak or drain so far."),
    more(view.events, "events", state, redraw));
}

function factsOf(event, view) {
  const seconds = Math.max(0, (event.end ?? view.time) - event.start), long = duration(seconds);
  const often = event.count > 1 ? `${count(event.count)} times` : "", ended = event.end !== null;
  return [
    !ended && `ongoing for ${long}`,
    ended && seconds >= 1 ? (often ? `${often} in ${long}` : `for ${long}`) : often,
    view.processes.length > 1 && `process ${event.pid}`,
  ].filter(Boolean).join(", ");
}

function processSection(view, state, redraw) {
  const all = [...view.processes].sort((a, b) => a.pid - b.pid), held = new Map();
  for (const {pid, in_use} of view.pools.flatMap(pool => pool.by_process)) held.set(pid, (held.get(pid) || 0) + in_use);
  const columns = [["Process", "num"], ["Command", "where"], ...[
    "In use", "CPU", "Memory", "Threads", "Descriptors", "Running for", "Figures from"].map(title => [title, "num"])];
  const rows = firstOf(all, "processes", state).map(one => ({key: one.pid, cells: [
    one.pid, h("code", {}, one.command || NONE), count(held.get(one.pid) || 0),
    one.cpu === null ? NONE : `${Math.round(100 * one.cpu)} %`, bytes(one.memory), count(one.threads),
    count(one.descriptors), duration(one.started ? view.time - one.started : null),
    h("span", {class: one.age > STALE ? "warn strong" : null}, ago(one.age))]}));
  return section("processes", "Processes", plural(all.length, "process", "processes"), null,
    table("Processes", columns, rows, "No process of the application is running.", "stack"),
    more(all, "processes", state, redraw));
}
