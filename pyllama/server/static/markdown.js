// Markdown to DOM nodes, and never to markup: what is no Markdown stays text, a link leads to http, https or mail.
// Every scan is linear or bounded, for what a model writes may be anything.
"use strict";

const DEEPEST = 8; // lists and quotes within each other; what is deeper stays text
const LIST = /^( *)([-*+]|\d{1,9}[.)])(?: +|$)/;
const FENCE = /^ {0,3}(`{3,}|~{3,}) *([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?: +|$)/;
const QUOTE = /^ {0,3}> ?/;
const LINK = /^(?:https?:\/\/|mailto:)[^\s<>"]+$/i;
const BARE_LINK = /https?:\/\/[^\s<>"'`\\[\]]+/iy;

/** An element with properties: make("button", {className: "small", onclick: f}, "Copy"). */
function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  Object.assign(element, properties);
  element.append(...children);
  return element;
}

function isRule(line) {
  const marks = line.replaceAll(" ", "");
  return marks.length >= 3 && "-*_".includes(marks[0]) && marks === marks[0].repeat(marks.length);
}

function cellsOf(line) {
  const cells = line.trim().split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
  if (cells[0] === "") cells.shift();
  if (cells.at(-1) === "") cells.pop();
  return cells;
}

function isTable(lines, at) {
  if (!lines[at].includes("|") || !lines[at + 1]?.includes("-")) return false;
  const marks = cellsOf(lines[at + 1]);
  return marks.length === cellsOf(lines[at]).length && marks.every((mark) => /^:?-+:?$/.test(mark));
}

/** Whether a paragraph ends before this line. */
function begins(line) {
  return !line.trim() || FENCE.test(line) || HEADING.test(line) || QUOTE.test(line) || LIST.test(line) || isRule(line);
}

const indentOf = (line) => line.length - line.trimStart().length;

/** Where the block that begins at a line ends, and what it is: {kind, lines, to, ...}. */
function blockAt(lines, at) {
  const line = lines[at];
  let to = at + 1;
  const block = (kind, more = {}) => ({ kind, lines: lines.slice(at, to), to, ...more });
  const fence = FENCE.exec(line);
  if (fence) {
    const closes = (other) => other.trim().startsWith(fence[1]) && !other.trim().replaceAll(fence[1][0], "");
    while (to < lines.length && !closes(lines[to])) to++;
    const code = lines.slice(at + 1, to).join("\n");
    if (to < lines.length) to++;
    return block("code", { code, language: fence[2].trim().split(/\s/)[0].slice(0, 20) });
  }
  if (isRule(line)) return block("rule");
  const heading = HEADING.exec(line);
  if (heading) return block("heading", { level: heading[1].length, text: line.slice(heading[0].length).trim() });
  if (QUOTE.test(line)) {
    while (to < lines.length && QUOTE.test(lines[to])) to++;
    return block("quote");
  }
  if (isTable(lines, at)) {
    to++;
    while (to < lines.length && lines[to].includes("|")) to++;
    return block("table");
  }
  if (LIST.test(line)) {
    const indent = indentOf(line);
    while (to < lines.length) {
      // A blank line ends it, unless more of it follows.
      const next = lines[to].trim() ? lines[to] : lines[to + 1] ?? "";
      const goes = indentOf(next) > indent || (LIST.test(next) && !isRule(next));
      if (!next.trim() || !(goes || (lines[to].trim() && !begins(lines[to])))) break;
      to++;
    }
    return block("list");
  }
  while (to < lines.length && !begins(lines[to]) && !isTable(lines, to)) to++;
  return block("text");
}

/** [{kind, lines, ...}] of a text's lines. */
function blocksOf(lines) {
  const found = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    found.push(blockAt(lines, at));
    at = found.at(-1).to;
  }
  return found;
}

function elementOf(block, depth = 0) {
  const { kind, lines } = block;
  if (kind === "code") return codeElement(block);
  if (kind === "rule") return make("hr");
  if (kind === "heading") return make(`h${Math.min(6, block.level + 1)}`, {}, ...inline(block.text));
  if (kind === "table") return tableElement(lines);
  if (depth < DEEPEST && kind === "quote") {
    return make("blockquote", {}, ...within(lines.map((line) => line.replace(QUOTE, "")), depth));
  }
  if (depth < DEEPEST && kind === "list") return listElement(lines, depth);
  return make("p", {}, ...inline(lines.join("\n").trim()));
}

const within = (lines, depth) => blocksOf(lines).map((block) => elementOf(block, depth + 1));

function listElement(lines, depth) {
  const [, , mark] = LIST.exec(lines[0]);
  const ordered = /\d/.test(mark);
  const list = make(ordered ? "ol" : "ul", ordered ? { start: parseInt(mark, 10) } : {});
  const base = indentOf(lines[0]);
  let item = null;
  const close = () => {
    if (!item) return;
    const task = /^\[([ xX])\] /.exec(item[0]);
    if (task) item[0] = item[0].slice(4);
    const children = within(item, depth);
    // A line alone needs no paragraph around it.
    const flat = children.flatMap((child, index) => (index === 0 && child.localName === "p" ? [...child.childNodes] : [child]));
    if (task) flat.unshift(make("input", { type: "checkbox", disabled: true, checked: task[1] !== " " }));
    list.append(make("li", {}, ...flat));
  };
  let content = 0; // where an item's text begins
  for (const line of lines) {
    const found = LIST.exec(line);
    if (found && found[1].length < base + 2 && !(item && found[1].length >= content)) {
      close();
      content = found[0].length;
      item = [line.slice(content)];
    } else {
      item.push(line.slice(Math.min(indentOf(line), content)));
    }
  }
  close();
  return list;
}

function tableElement(lines) {
  const [head, marks, ...rows] = lines.map(cellsOf);
  const side = marks.map((mark) => (mark.endsWith(":") ? (mark[0] === ":" ? "center" : "right") : ""));
  const row = (name, cells) =>
    make("tr", {}, ...head.map((_, index) => make(name, { className: side[index] }, ...inline(cells[index] ?? ""))));
  const table = make("table", {}, make("thead", {}, row("th", head)), make("tbody", {}, ...rows.map((cells) => row("td", cells))));
  return make("div", { className: "table", tabIndex: 0 }, table);
}

function codeElement({ code, language }) {
  const button = make("button", { type: "button", className: "plain small", onclick: (event) => copy(code, event.target) }, "Copy");
  const bar = make("div", { className: "bar" }, make("span", {}, language), button);
  return make("div", { className: "code" }, bar, make("pre", { tabIndex: 0 }, make("code", {}, ...highlighted(code, language))));
}

// --- within a paragraph ---

const PAIRS = [["**", "strong"], ["__", "strong"], ["~~", "del"], ["*", "em"], ["_", "em"]];

/** Text with `code`, **strong**, *emphasis*, ~~deleted~~ and links, as nodes. */
function inline(text, depth = 0) {
  const nodes = [];
  let plain = "";
  const none = new Set(); // marks that close nowhere further on
  const closing = (mark, from) => {
    if (none.has(mark)) return -1;
    const at = text.indexOf(mark, from);
    if (at < 0) none.add(mark);
    return at;
  };
  const add = (node) => {
    if (plain) nodes.push(plain);
    plain = "";
    nodes.push(node);
  };
  for (let at = 0; at < text.length; ) {
    const found = depth < DEEPEST && "\\`*_~[!hH".includes(text[at]) ? spanAt(text, at, closing, depth) : null;
    if (!found) {
      plain += text[at++];
    } else {
      if (typeof found.node === "string") plain += found.node;
      else add(found.node);
      at = found.to;
    }
  }
  if (plain) nodes.push(plain);
  return nodes;
}

/** What begins at a character: {node, to}; null if it is plain text. */
function spanAt(text, at, closing, depth) {
  const mark = text[at];
  if (mark === "\\") return /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "") ? { node: text[at + 1], to: at + 2 } : null;
  if (mark === "`") {
    let run = "`";
    while (text[at + run.length] === "`") run += "`";
    const end = closing(run, at + run.length);
    if (end < 0) return { node: run, to: at + run.length };
    const code = text.slice(at + run.length, end);
    return { node: make("code", {}, run.length > 1 ? code.trim() : code), to: end + run.length };
  }
  if (mark === "[" || (mark === "!" && text[at + 1] === "[")) return linkAt(text, mark === "!" ? at + 1 : at, closing, depth);
  if (mark === "h" || mark === "H") {
    if (/\w/.test(text[at - 1] ?? "")) return null;
    BARE_LINK.lastIndex = at;
    const url = BARE_LINK.exec(text)?.[0].replace(/[.,:;!?*_~)]{1,9}$/, "");
    return url ? { node: linkElement(url, [url]), to: at + url.length } : null;
  }
  for (const [pair, name] of PAIRS) {
    if (!text.startsWith(pair, at)) continue;
    const from = at + pair.length;
    const inWord = mark === "_" && /\w/.test(text[at - 1] ?? "");
    if (inWord || /^\s|^$/.test(text.slice(from, from + 1))) return { node: pair, to: from };
    const end = closing(pair, from + 1);
    const closes = end > from && !/\s/.test(text[end - 1]) && !(mark === "_" && /\w/.test(text[end + pair.length] ?? ""));
    if (!closes) return { node: pair, to: from };
    return { node: make(name, {}, ...inline(text.slice(from, end), depth + 1)), to: end + pair.length };
  }
  return null;
}

function linkAt(text, at, closing, depth) {
  const end = closing("](", at + 1);
  const last = end < 0 ? -1 : text.indexOf(")", end);
  if (last < 0 || last - at > 4000) return null;
  const url = text.slice(end + 2, last).trim().split(/\s/)[0];
  const label = text.slice(at + 1, end);
  if (!LINK.test(url) || label.includes("[")) return null;
  return { node: linkElement(url, inline(label || url, depth + 1)), to: last + 1 };
}

function linkElement(url, children) {
  return make("a", { href: url, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children);
}
