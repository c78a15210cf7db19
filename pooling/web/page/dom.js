"use strict";
// Elements as plain values, and the smallest change that makes the document equal to them: what has the focus, a
// selection or the pointer over it stays the same element. Texts become text nodes, so nothing is read as HTML.

const SVG = new Set(["svg", "path", "rect", "line"]);

function h(tag, props, ...children) {
  const shown = one => one !== null && one !== undefined && one !== false;
  return {tag, props, children: children.flat(Infinity).filter(shown)};
}

function make(tag) {
  return SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
}

function setProps(node, props) {
  const before = node.props || {};
  for (const name in before) {
    if (name in props || name === "key") continue;
    if (name.startsWith("on")) node[name] = null;
    else node.removeAttribute(name);
  }
  for (const name in props) {
    const value = props[name];
    if (name === "key") continue;
    if (name.startsWith("on")) node[name] = value;
    else if (value === before[name]) continue;
    else if (value === false || value === null || value === undefined) node.removeAttribute(name);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.props = props;
}

function fill(parent, wanted) {
  const before = parent.parts || new Map(), parts = new Map(), counts = {};
  const nodes = wanted.map(one => {
    const isText = typeof one !== "object", kind = isText ? "#" : one.tag;
    counts[kind] = (counts[kind] || 0) + 1;
    const key = `${kind} ${isText || one.props.key === undefined ? counts[kind] : `key ${one.props.key}`}`;
    const node = before.get(key) || (isText ? document.createTextNode("") : make(one.tag));
    before.delete(key);
    parts.set(key, node);
    if (!isText) {
      fill(node, one.children);
      setProps(node, one.props);
    } else if (node.data !== String(one)) {
      node.data = String(one);
    }
    return node;
  });
  for (const node of before.values()) node.remove();
  let at = parent.firstChild;
  for (const node of nodes) {
    if (node === at) at = at.nextSibling;
    else parent.insertBefore(node, at);
  }
  parent.parts = parts;
}

function show(parent, wanted) {
  if (!parent.parts) parent.replaceChildren();
  const focused = document.activeElement;
  fill(parent, wanted.filter(Boolean));
  if (focused !== document.activeElement && focused.isConnected) focused.focus({preventScroll: true});  // it was moved
}

// -- numbers ---------------------------------------------------------------------------------------

const NONE = "–";

function count(value) {
  if (value === null || value === undefined) return NONE;
  return Math.round(value).toLocaleString("en").replaceAll(",", "\u202f");
}

function rate(value) {
  if (value === null || value === undefined) return NONE;
  if (value === 0) return "0";
  if (value < 0.1) return "<\u202f0.1";
  return value < 9.95 ? String(Number(value.toFixed(1))) : count(value);
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  if (seconds <= 0) return "0";
  if (seconds < 0.00095) return `${Math.max(1, Math.round(seconds * 1e6))} µs`;
  if (seconds < 0.00995) return `${(seconds * 1e3).toFixed(1)} ms`;
  if (seconds < 0.9995) return `${Math.round(seconds * 1e3)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 119.5) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} days`;
}

function ago(seconds) {
  return seconds < 2 ? "just now" : `${duration(seconds)} ago`;
}

function bytes(value) {
  if (value === null || value === undefined) return NONE;
  return value < 1e9 ? `${(value / 1e6).toFixed(value < 1e7 ? 1 : 0)} MB` : `${(value / 1e9).toFixed(1)} GB`;
}

function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString("en-GB");
}

function day(seconds, now) {
  const date = new Date(seconds * 1000);
  if (date.toDateString() === new Date(now * 1000).toDateString()) return clock(seconds);
  return `${date.toLocaleDateString("en-GB", {day: "numeric", month: "short"})} ${clock(seconds).slice(0, 5)}`;
}

function plural(number, word, words) {
  return `${count(number)} ${number === 1 ? word : words || word + "s"}`;
}
