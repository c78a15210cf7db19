// Signs of states, bars, charts and tables: each function returns elements as values, see `h`.

const STATES = {  // the sign differs as well as the colour; the lower the rank, the more urgent
  down: {sign: "✕", css: "bad", rank: 0}, exhausted: {sign: "▲", css: "warn", rank: 1},
  up: {sign: "●", css: "good", rank: 2}, closed: {sign: "○", css: "dim", rank: 3},
};
const POINTS = 60, FEW = 10;  // of a chart, one for each minute; rows before "show all"

function stateOf(pool) {
  return STATES[pool.state] || {sign: "●", css: "dim", rank: 4};
}

function badge(pool) {
  const {sign, css} = stateOf(pool);
  return h("span", {class: `badge ${css}`}, h("span", {"aria-hidden": "true"}, sign), " ", pool.state);
}

function bar(pool) {
  const max = Math.max(pool.max_size || 0, pool.size, pool.in_use, 1);
  const width = number => (100 * number / max).toFixed(2);
  const used = Math.min(pool.in_use, max), idle = Math.min(pool.idle, max - used);
  const rect = (css, x, size) => h("rect", {class: css, x, y: 0, width: size, height: 8});
  const css = pool.state === "exhausted" ? "bar full" : "bar";
  return h("svg", {class: css, viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true"},
    rect("track", 0, 100), rect("idle", width(used), width(idle)), rect("used", 0, width(used)));
}

// -- charts ----------------------------------------------------------------------------------------

function known(values) {
  return (values || []).filter(one => one !== null && one !== undefined);
}

function paths(values, top, height) {  // a gap where nothing was recorded
  let line = "", area = "", from = null;
  const close = at => {
    if (from !== null) area += `L${at} ${height}L${from} ${height}Z`;
    from = null;
  };
  values.forEach((value, at) => {
    if (value === null || value === undefined) return close(at - 1);
    const y = (height - 1 - (height - 2) * Math.min(1, value / top)).toFixed(2), begins = from === null;
    if (begins) from = at;
    line += begins ? `M${at} ${y}h.01` : `L${at} ${y}`;
    area += `${begins ? "M" : "L"}${at} ${y}`;
  });
  close(values.length - 1);
  return {line, area};
}

function chart(values, {label, format, limit = 0, height = 24, css = ""}) {
  const found = known(values), peak = Math.max(0, ...found), top = Math.max(limit, peak) || 1;
  const {line, area} = paths(values || [], top, height), end = POINTS - 1;
  const level = (kind, y) => h("line", {class: kind, x1: 0, x2: end, y1: y, y2: y});
  const said = found.length ? `highest ${format(peak)}, last ${format(found.at(-1))}` : "nothing recorded";
  const box = {viewBox: `0 0 ${end} ${height}`, preserveAspectRatio: "none"};
  return h("svg", {class: `chart ${css}`, ...box, role: "img", "aria-label": `${label}, last hour: ${said}`},
    level("base", height - 1), limit > 0 && level("limit", 1 + (height - 2) * (1 - limit / top)),
    h("path", {class: "area", d: area}), h("path", {class: "line", d: line}));
}

function figure(pool, title, values, format, css, limit) {
  const found = known(values), peak = found.length ? `peak ${format(Math.max(...found))}` : "no data";
  return h("figure", {key: title},
    h("figcaption", {}, h("span", {}, title), h("span", {class: "dim"}, peak)),
    chart(values, {label: `${title} of ${pool.name}`, format, height: 48, css: `tall ${css}`, limit}),
    h("div", {class: "axis"}, h("span", {}, clock(pool.minutes.start)), h("span", {}, "now")));
}

// -- tables ----------------------------------------------------------------------------------------

// The roles are those that the elements have anyway; a narrow screen shows them as blocks, without their own roles.
function table(name, columns, rows, none, css = "") {
  if (!rows.length) return h("p", {class: "none"}, none);
  const head = ([title, kind]) => h("th", {role: "columnheader", scope: "col", class: kind}, title);
  const cell = (content, at) => h("td", {role: "cell", class: columns[at][1], "data-label": columns[at][0]}, content);
  return h("table", {class: `plain ${css}`, role: "table", "aria-label": name},
    h("thead", {role: "rowgroup"}, h("tr", {role: "row"}, columns.map(head))),
    h("tbody", {role: "rowgroup"}, rows.map(row => h("tr", {role: "row", key: row.key}, row.cells.map(cell)))));
}

function section(id, title, note, css, ...content) {
  return h("section", {key: id, class: css, "aria-labelledby": id},
    h("div", {class: "head"}, h("h2", {id}, title), h("span", {class: "dim"}, note)), content);
}

function firstOf(all, id, state) {
  return state.all.has(id) ? all : all.slice(0, FEW);
}

function more(all, id, state, redraw) {
  if (all.length <= FEW) return null;
  const open = state.all.has(id), text = open ? `Show the first ${FEW}` : `Show all ${count(all.length)}`;
  const onclick = () => {
    if (!state.all.delete(id)) state.all.add(id);
    redraw();
  };
  return h("button", {class: "more", type: "button", "aria-expanded": String(open), onclick}, text);
}
