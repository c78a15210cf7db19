// Polling, and what the page says while the application does not answer.

const EVERY = 1000, HIDDEN = 15000, SLOWEST = 15000, PATIENCE = 5000;  // milliseconds
const CALM = 15000, SETTLED = 2500;  // a pool that is exhausted every other second neither jumps nor is said every time
const KEY = "pooling.dashboard.token";

const page = document.getElementById("page"), said = document.getElementById("said");
const state = {
  view: null, sort: {by: "state", down: false}, open: new Set(), all: new Set(), filter: "", paused: false,
  token: "", asks: document.documentElement.dataset.admitted !== "yes", refused: "",
  answered: null, began: Date.now(), failures: 0, reason: "",  // times of this browser's clock, in milliseconds
  pids: new Set(), ran: false, gone: null, late: new Map(), ranks: new Map(), summary: "", since: 0, announced: "",
};
let timer = 0, request = 0;

function stored(value) {  // for this tab only; without storage, until the page is left
  try {
    if (value === undefined) return sessionStorage.getItem(KEY) || "";
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  } catch { /* storage is switched off */ }
  return value || "";
}

async function ask() {
  const headers = {Accept: "application/json"}, signal = AbortSignal.timeout(PATIENCE);
  if (state.token) headers.Authorization = "Bearer " + String.fromCharCode(...new TextEncoder().encode(state.token));
  const url = location.pathname + location.search;
  const answer = await fetch(url, {headers, signal, cache: "no-store", redirect: "manual"});
  if (answer.type === "opaqueredirect") throw new Error("it redirects, perhaps to a login: load this page again");
  if (answer.status === 401 || answer.status === 403) return null;
  const isJson = (answer.headers.get("Content-Type") || "").startsWith("application/json");
  if (!answer.ok && isJson) throw new Error((await answer.json()).error);
  if (!answer.ok) throw new Error(`it answers ${answer.status} ${answer.statusText}`.trim());
  if (!isJson) throw new Error("it answers with something else than figures");
  return answer.json();
}

async function poll() {
  clearTimeout(timer);
  const mine = ++request;
  try {
    const view = await ask();
    if (mine !== request) return;  // paused, or asked again, meanwhile
    state.failures = 0;
    if (view === null) return refuse();
    arrived(view);
  } catch (error) {
    if (mine !== request) return;
    state.failures += 1;
    state.reason = reasonOf(error);
  }
  redraw();
  later();
}

function reasonOf(error) {
  if (error.name === "TimeoutError") return `no answer within ${PATIENCE / 1000} s`;
  if (error instanceof TypeError) return "the connection failed";
  return error instanceof SyntaxError ? "its answer was cut off" : error.message;
}

function later() {
  clearTimeout(timer);
  if (state.paused || state.asks) return;
  // A worker that was just killed is no outage: try again soon. Then ever less often.
  const wait = state.failures ? Math.min(SLOWEST, 250 * 2 ** state.failures) : EVERY;
  timer = setTimeout(poll, document.hidden ? Math.max(wait, HIDDEN) : wait);
}

function arrived(view) {
  state.view = view;
  state.answered = Date.now();
  state.asks = false;
  state.refused = "";
  state.pids.add(view.answered_by);
  for (const pool of view.pools) {
    const rank = stateOf(pool).rank, known = state.ranks.get(pool.name);
    const calm = !known || rank <= known.rank || Date.now() - known.at > CALM;
    if (calm) state.ranks.set(pool.name, {rank, at: Date.now()});
    pool.rank = state.ranks.get(pool.name).rank;
  }
  if (view.processes.length) state.ran = true;
  if (view.processes.length || !state.ran || view.scope === "process") state.gone = null;
  else if (state.gone === null) state.gone = Date.now();
  const late = view.processes.filter(one => one.age > STALE).map(one => one.pid);
  state.late = new Map(late.map(pid => [pid, state.late.get(pid) ?? Date.now()]));
}

function refuse() {
  if (state.token) state.refused = "This token is not right.";
  else state.refused = state.view ? "You are not admitted any more. Load this page again, or enter the token." : "";
  state.token = stored("");
  state.view = null;
  state.asks = true;
  redraw();
  document.getElementById("token").focus();
}

function enter(event) {
  event.preventDefault();
  const field = document.getElementById("token");
  state.token = stored(field.value.trim());
  field.value = "";
  if (state.token) poll();
}

function forget() {
  clearTimeout(timer);
  request += 1;
  state.token = state.view = null;
  refuse();
}

function pause() {
  state.paused = !state.paused;
  if (!state.paused) return poll();
  request += 1;
  later();
  redraw();
}

// -- what is said ----------------------------------------------------------------------------------

function tokenForm() {
  return h("form", {key: "form", class: "card gate", onsubmit: enter, autocomplete: "off"},
    h("h1", {}, "Pools"), h("label", {for: "token"}, "Token"),
    h("div", {class: "row"},
      h("input", {id: "token", type: "password", autocomplete: "off", "aria-describedby": "token-note",
                  "aria-invalid": state.refused ? "true" : null}),
      h("button", {type: "submit", class: "main"}, "Show")),
    state.refused && h("p", {class: "bad", role: "alert"}, state.refused),
    h("p", {id: "token-note", class: "dim"}, "It is kept in this tab until you close it, and sent as a header only."));
}

function silent() {  // one failure is none: a worker may just have been killed
  return state.failures > 1 || (state.failures > 0 && Date.now() - state.answered >= PATIENCE);
}

function notices(view) {
  const found = [], directory = h("code", {}, "POOLING_METRICS_DIR");
  const note = (css, ...text) => found.push(h("p", {key: css + found.length, class: `notice ${css}`}, text));
  if (silent()) {
    const since = state.answered ?? state.began;
    note("bad", h("b", {}, "The application does not answer"),
      ` since ${clock(since / 1000)} (${duration((Date.now() - since) / 1000)}): ${state.reason}. `,
      view && "The figures below are from then. ", h("button", {type: "button", onclick: poll}, "Try now"));
  }
  if (!view) return found;
  // Unwatched processes write seldom: they get a moment to notice that they are watched again.
  const late = view.processes.filter(one => Date.now() - state.late.get(one.pid) > 5000);
  if (state.gone !== null) {
    note("bad", h("b", {}, "No process of the application is running"), ` since ${clock(state.gone / 1000)}.`);
  }
  if (late.length) {
    const whose = `${late.length > 1 ? "processes" : "process"} ${late.map(one => one.pid).join(", ")}`;
    note("warn", h("b", {}, `No new figures of ${whose}`),
      ` for ${duration(Math.max(...late.map(one => one.age)))}: stopped, blocked, or the machine is overloaded.`);
  }
  if (view.scope === "process" && state.pids.size > 1) {
    note("warn", h("b", {}, "Several processes answer in turn"), ", each with its own figures only. Set ", directory,
      " for all of them to see them together.");
  } else if (view.scope === "process") {
    note("quiet", `This process only (${view.answered_by}). To see all workers of gunicorn or uWSGI together, set `,
      directory, " for them.");
  } else if (view.scope === "attached" && !state.ran) {
    note("quiet", "No application to attach to was found so far. It must run as the same user, and have used a pool. ",
      "One with ", directory, " needs ", h("code", {}, "--dir"), ".");
  } else if (view.scope === "directory" && !state.ran) {
    note("quiet", "No process that shares this directory is running so far, or none has used a pool yet.");
  }
  return found;
}

function standing(view) {
  const counts = {};
  for (const pool of view.pools) counts[pool.state] = (counts[pool.state] || 0) + 1;
  const bad = ["down", "exhausted"].filter(name => counts[name]);
  if (!view.pools.length) return {text: "no pools", css: "dim", sign: "○"};
  if (!bad.length) return {text: "all up", css: "good", sign: "●"};
  return {text: bad.map(name => `${counts[name]} ${name}`).join(", "), ...STATES[bad[0]]};
}

function summary() {
  if (silent()) return {text: "no answer", css: "bad", sign: "✕"};
  if (state.gone !== null) return {text: "not running", css: "bad", sign: "✕"};
  return state.view ? standing(state.view) : {text: "connecting", css: "dim", sign: "○"};
}

function topOfPage(now) {
  const stale = silent() || state.paused;
  const updated = state.answered && `${state.paused ? "paused at" : "updated"} ${clock(state.answered / 1000)}`;
  return h("header", {key: "top"}, h("h1", {}, "Pools"),
    h("span", {class: `badge big ${now.css}`, id: "standing"},
      h("span", {"aria-hidden": "true"}, now.sign), " ", now.text),
    h("span", {class: `updated ${stale ? "warn" : "dim"}`}, updated),
    h("button", {type: "button", id: "pause", onclick: pause}, state.paused ? "Resume" : "Pause"),
    state.token && h("button", {type: "button", id: "forget", onclick: forget}, "Forget token"));
}

function announce(text) {  // to readers of the screen: what has changed and stays so
  if (text !== state.summary) state.since = Date.now();
  state.summary = text;
  if (text === state.announced || Date.now() - state.since < SETTLED) return;
  state.announced = said.textContent = text;
}

function sections(view) {
  const parts = [view, state, redraw], some = view.pools.length + view.events.length > 0;
  return [
    view.pools.length > 0 && totals(view), poolSection(...parts),
    some && h("div", {key: "halves", class: "halves"}, holderSection(...parts), eventSection(...parts)),
    view.processes.length + view.pools.length > 0 && processSection(...parts),
  ];
}

function redraw() {
  const view = state.view, now = summary();
  if (state.asks) {
    document.title = "Pools";
    show(page, [...notices(null), tokenForm()]);
    return;
  }
  document.title = now.css === "good" || now.css === "dim" ? "Pools" : `${now.sign} ${now.text} – Pools`;
  announce(now.text);
  document.body.classList.toggle("stale", silent());
  show(page, [topOfPage(now), ...notices(view), ...(view ? sections(view) : [])]);
}

document.addEventListener("visibilitychange", () => {
  state.late.clear();
  return document.hidden || state.paused || state.asks ? later() : poll();
});
setInterval(() => { if (state.failures || state.gone !== null) redraw(); }, 1000);

state.token = stored();
if (state.token) state.asks = false;
redraw();
if (state.asks) document.getElementById("token").focus();
else poll();
